"""What each operator does to the affine form that flows into it, one file per family.

Files, in the order in which data flows: `registry`, `spelling`, `steps`, `calling`, `channels`,
`convolution`, `elementwise`, `identities`, `indexing`, `normalization`, `views`, `padding`,
`entry_points`.
"""

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
from reparam.rules.calling import call_rule
from reparam.rules.entry_points import load_rules
from reparam.rules.registry import (
    Rules,
    describe_rule,
    describe_target,
    is_built_in,
    register_rule,
    registered_rules,
)
from reparam.rules.steps import UNKNOWN, Commuting, Extent, Selecting, Several, Stacked, Step

__all__ = [
    "UNKNOWN",
    "Commuting",
    "Extent",
    "Rules",
    "Selecting",
    "Several",
    "Stacked",
    "Step",
    "call_rule",
    "describe_rule",
    "describe_target",
    "is_built_in",
    "load_rules",
    "register_rule",
    "registered_rules",
]
