"""What is certain of a graph: constants, axes, memory, forms; and a model's parts that have one.

Files, in the order in which data flows: `effects`, `aliasing`, `types_of_inputs`, `constants`,
`ranks`, `features`, `facts`, `borders`, `channels`, `extents`, `dtypes`, `lifting`,
`example_run`, `parts`.
"""

from reparam.analysis.channels import known_channels
from reparam.analysis.dtypes import holds_type, promotes
from reparam.analysis.effects import reads_layout
from reparam.analysis.extents import Extents
from reparam.analysis.facts import Facts
from reparam.analysis.lifting import target_of
from reparam.analysis.parts import Part, Untraced, find_parts
from reparam.analysis.ranks import keeps_shape
