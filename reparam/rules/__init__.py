"""What each operator does to the affine form that flows into it, one file per family."""

from reparam.rules import (  # noqa: F401  (importing a family registers its rules)
    channels,
    convolution,
    elementwise,
    identities,
    indexing,
    normalization,
    padding,
    views,
)
from reparam.rules.registry import (
    UNKNOWN,
    Commuting,
    Extent,
    Rules,
    Selecting,
    Several,
    Stacked,
    Step,
    describe_target,
    register_rule,
)

__all__ = [
    "UNKNOWN",
    "Commuting",
    "Extent",
    "Rules",
    "Selecting",
    "Several",
    "Stacked",
    "Step",
    "describe_target",
    "register_rule",
]
