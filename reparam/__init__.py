"""Structural re-parameterization for any PyTorch network.

Train with many linear branches, deploy with one convolution that computes exactly the same:
`fuse` finds the affine parts of a traced model and emits one operator wherever that is exact and
cheaper.

Rooms, in the order in which data flows: `errors`, `modules`, `algebra`, `rules`, `capture`,
`analysis`, `planning`, `rewriting`, `verification`, `following`, `report`, `expansion`, `fusing`,
`equalization`, `testing`, `deployment`, `cli`.
"""

from reparam import testing
from reparam.algebra import AffineConv, Axis
from reparam.equalization import equalize
from reparam.errors import Refusal, ReparamError
from reparam.expansion import blocks, expand
from reparam.following import refresh
from reparam.fusing import Plan, fuse, gradient_multipliers, plan
from reparam.planning import Operator
from reparam.rules import register_rule
from reparam.verification import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "AffineConv",
    "Axis",
    "Operator",
    "Plan",
    "Refusal",
    "ReparamError",
    "Verification",
    "blocks",
    "equalize",
    "expand",
    "fuse",
    "gradient_multipliers",
    "plan",
    "refresh",
    "register_rule",
    "testing",
    "verify",
]
