"""Somebody's module tree: paths, copies, state put back, runs in float64.

Files, in the order in which data flows: `tree`, `copying`, `at_work`, `state`, `float64`.
"""
