"""Affine forms, their laws, and the torch module of a form: tensors, no graph.

Files, in the order in which data flows: `expressions`, `kernels`, `axis_composition`, `forms`,
`selection`, `laws`, `affine`, `known_sizes`, `norms`, `lowering`, `recipes`.
"""

from reparam.algebra.affine import (
    Affine,
    AffineConv,
    AffineStack,
    AffineSum,
    identity,
    under_condition,
    unseen,
)
from reparam.algebra.axis_composition import Axis, PaddingMode
from reparam.algebra.expressions import (
    Recording,
    Unseen,
    computed,
    evaluate,
    leaves,
    note_origin,
    origin_of,
    over,
)
from reparam.algebra.forms import Columns, weights_dtype
from reparam.algebra.known_sizes import over_positions, positions_after
from reparam.algebra.laws import kernel_shape
from reparam.algebra.lowering import (
    explicit_padding,
    loses_digits,
    lower,
    operators,
    pad_mode,
    run_operator,
    take_after,
    unsupported,
)
from reparam.algebra.norms import (
    Norm,
    batch_norm,
    ending,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)
from reparam.algebra.recipes import Recipe, recipe_of
from reparam.algebra.selection import spread, taken, without_constant
