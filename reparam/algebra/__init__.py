"""Affine forms, their laws, and the torch module of a form: tensors, no graph.

Files, in the order in which data flows: `kernels`, `geometry`, `forms`, `selection`, `laws`,
`affine`, `lowering`.
"""
