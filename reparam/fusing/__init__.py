"""Plan and fuse: the public calls, and a plan carried out.

Files, in the order in which data flows: `new_operators`, `expanded`, `unused_parts`, `applying`,
`plans`, `driver`, `gradient_multipliers`.
"""

from reparam.fusing.driver import fuse, plan
from reparam.fusing.gradient_multipliers import gradient_multipliers
from reparam.fusing.plans import Plan
