"""Which values become one operator: decides, computes no weight, changes nothing.

Files, in the order in which data flows: `dominators`, `stopwatch`, `cost_functions`, `regions`,
`layouts`, `hazards`, `positions`, `appraiser`, `joint_readers`, `scales`, `sums`, `folding`,
`planner`, `invariants`, `planned_parts`.
"""

from reparam.planning.cost_functions import (
    MACS,
    MEMORY,
    MULTIPLY_ADDS,
    Basis,
    CostFunction,
    Measure,
    Operator,
    latency,
)
from reparam.planning.dominators import Link
from reparam.planning.folding import Folding
from reparam.planning.planned_parts import PlannedPart
from reparam.planning.regions import Absorbed, FoldedNorm, Gathered, Multiple, Region, Rows, Share
