"""Structural re-parameterization for any PyTorch network.

Train with many linear branches, deploy with one convolution that computes exactly the same:
`fuse` finds the affine parts of a traced model and emits one operator wherever that is exact and
cheaper.
"""

from reparam import testing
from reparam.affine import AffineConv
from reparam.driver import Plan, fuse, plan
from reparam.equalization import equalize
from reparam.errors import Refusal, ReparamError
from reparam.geometry import Axis
from reparam.rules import register_rule
from reparam.verification import Verification, verify
from reparam.weighing import Operator

__version__ = "0.1.0"

__all__ = [
    "AffineConv",
    "Axis",
    "Operator",
    "Plan",
    "Refusal",
    "ReparamError",
    "Verification",
    "equalize",
    "fuse",
    "plan",
    "register_rule",
    "testing",
    "verify",
]
