"""What is certain of a graph: constants, axes, memory, and the form of each operator.

Files, in the order in which data flows: `effects`, `example_run`, `ranks`, `facts`, `borders`,
`channels`, `extents`, `lifting`, `parts`.
"""
