"""Which values become one operator: decides, computes no weight, changes nothing.

Files, in the order in which data flows: `costs`, `dominators`, `cost_functions`, `regions`,
`hazards`, `positions`, `appraiser`, `joint_readers`, `regrouped_sums`, `distributed_scales`,
`planner`, `invariants`, `planned_parts`.
"""
