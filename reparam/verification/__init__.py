"""Does it compute the same: one operator, one module, the whole model.

Files, in the order in which data flows: `exact_run`, `region_check`, `random_runs`, `model_check`,
`call_samples`, `module_check`, `transactions`.
"""
