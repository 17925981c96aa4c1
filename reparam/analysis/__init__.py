"""What is certain of a graph: constants, axes, memory, and the form of each operator.

Files, in the order in which data flows: `example_run`, `effects`, `memory`, `constants`,
`rank_laws`, `ranks`, `facts`, `borders`, `channels`, `extents`, `lifting`, `parts`.
"""
