"""What each operator does to the affine form that flows into it, one file per family.

Files, in the order in which data flows: `registry`, `spelling`, `steps`, `calling`, `channels`,
`convolution`, `elementwise`, `identities`, `indexing`, `normalization`, `views`, `padding`,
`entry_points`.
"""

from reparam.rules import (  # importing a family registers its rules
    channels,
    convolution,
    elementwise,
    identities,
    indexing,
    normalization,
    padding,
    views,
)
from reparam.rules.calling import call_rule, in_names_of
from reparam.rules.convolution import (
    convolution_function,
    convolution_module,
    general_convolution,
    linear,
    linear_module,
    transposed_function,
    transposed_module,
)
from reparam.rules.entry_points import load_rules
from reparam.rules.registry import (
    Rule,
    Rules,
    Target,
    as_listed,
    describe_rule,
    describe_target,
    is_built_in,
    register_rule,
    registered_rules,
)
from reparam.rules.spelling import first_line, spelled
from reparam.rules.steps import (
    UNKNOWN,
    UNKNOWN_RANK,
    Commuting,
    Extent,
    Selecting,
    Several,
    Stacked,
    Step,
    Unknown,
)
