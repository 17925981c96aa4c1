"""A decision carried out: the graph edited, put back into the module tree or a program.

Files, in the order in which data flows: `changes`, `invariants`, `repeats`, `placement`,
`rewriter`, `new_code`, `fused_forward`, `pruning`, `graft`, `programs`.
"""
