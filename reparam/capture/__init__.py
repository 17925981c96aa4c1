"""From a model or a program to a flat graph that knows whose code made each node.

Files, in the order in which data flows: `reading`, `writes`, `operators`, `structures`, `trace`,
`invariants`, `contexts`, `known_types`, `leaf_functions`, `proxies`, `tracer`, `tracing`,
`programs`, `recorded`.
"""
