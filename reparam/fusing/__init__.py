"""Plan and fuse: the public calls, and a plan carried out.

Files, in the order in which data flows: `new_operators`, `expanded`, `unused_parts`, `applying`,
`plans`, `tensors_given`, `driver`, `fused_alike`, `gradient_multipliers`.
"""

from reparam.fusing.driver import fuse, plan
from reparam.fusing.fused_alike import fuse_alike
from reparam.fusing.gradient_multipliers import gradient_multipliers
from reparam.fusing.plans import Plan
