"""Structural re-parameterization for any PyTorch network.

Train with many linear branches, deploy with one convolution that computes exactly the same:
`fuse` finds the affine parts of a traced model and emits one operator wherever that is exact and
cheaper.

Rooms, in the order in which data flows: `errors`, `modules`, `algebra`, `rules`, `capture`,
`analysis`, `planning`, `rewriting`, `verification`, `report`, `fusing`, `equalization`, `testing`,
`deployment`, `cli`.
"""

from reparam import testing
from reparam.algebra.affine import AffineConv
from reparam.algebra.geometry import Axis
from reparam.equalization.equalize import equalize
from reparam.errors import Refusal, ReparamError
from reparam.fusing.driver import Plan, fuse, plan
from reparam.planning.cost_functions import Operator
from reparam.rules import register_rule
from reparam.verification.model_check import Verification, verify

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
