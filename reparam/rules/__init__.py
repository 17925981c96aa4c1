"""What each operator does to the affine form that flows into it, one file per family.

Families go by what their rules return: a form with weights (`convolution`, `normalization`,
`elementwise`, `equations`), one with a kernel that is always the same (`fixed_kernels`), an
operator that forms cross (`views`, with global pools and interpolation, `indexing`), and parts
of the channels (`channel_selection`).

Files, in the order in which data flows: `registry`, `steps`, `calling`, `channel_selection`,
`convolution`, `elementwise`, `equations`, `indexing`, `normalization`, `views`, `fixed_kernels`.
"""

from reparam.rules import (  # importing a family registers its rules
    channel_selection,
    convolution,
    elementwise,
    equations,
    fixed_kernels,
    indexing,
    normalization,
    views,
)
from reparam.rules.calling import RuleError, call_rule, in_names_of
from reparam.rules.convolution import (
    convolution_function,
    convolution_module,
    general_convolution,
    linear,
    linear_module,
    transposed_function,
    transposed_module,
)
from reparam.rules.equations import rank_of, terms_of
from reparam.rules.registry import (
    Rule,
    Rules,
    Target,
    as_listed,
    describe_rule,
    describe_target,
    first_line,
    is_built_in,
    load_rules,
    register_rule,
    registered_rules,
    spelled,
)
from reparam.rules.steps import (
    UNKNOWN,
    UNKNOWN_RANK,
    Commuting,
    Extent,
    Normalized,
    Selecting,
    Several,
    Stacked,
    Step,
    Unknown,
    Unscalable,
    unpacked,
)
