"""Does it compute the same: one operator, one module, the whole model.

Files, in the order in which data flows: `region_check`, `random_runs`, `model_check`,
`module_check`, `transactions`.
"""
