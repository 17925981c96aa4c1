"""Structural re-parameterization for any PyTorch network.

Train with many linear branches, deploy with one convolution that computes exactly the same:
`fuse` finds the affine parts of a traced model and emits one operator wherever that is exact and
cheaper.

Rooms, in the order in which data flows: `errors`, `modules`, `algebra`, `rules`, `capture`,
`analysis`, `planning`, `rewriting`, `verification`, `following`, `report`, `expansion`, `fusing`,
`equalization`, `testing`, `deployment`, `cli`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reparam import testing
    from reparam.algebra import AffineConv, Axis
    from reparam.deployment import load, save
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
    "load",
    "plan",
    "refresh",
    "register_rule",
    "save",
    "testing",
    "verify",
]

_ROOMS = {
    "algebra": ("AffineConv", "Axis"),
    "deployment": ("load", "save"),
    "equalization": ("equalize",),
    "errors": ("Refusal", "ReparamError"),
    "expansion": ("blocks", "expand"),
    "following": ("refresh",),
    "fusing": ("Plan", "fuse", "gradient_multipliers", "plan"),
    "planning": ("Operator",),
    "rules": ("register_rule",),
    "verification": ("Verification", "verify"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is asked for: `reparam --help` does without PyTorch."""
    if name == "testing":
        return import_module("reparam.testing")
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'reparam' has no attribute {name!r}")
    value = getattr(import_module(f"reparam.{_ROOM_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
