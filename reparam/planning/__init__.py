"""Which values become one operator: decides, computes no weight, changes nothing.

Files, in the order in which data flows: `costs`, `dominators`, `cost_functions`, `regions`,
`hazards`, `appraiser`, `joint_readers`, `regrouped_sums`, `distributed_scales`, `planner`,
`planned_parts`.
"""
