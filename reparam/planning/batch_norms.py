"""The batch norm that an operator is, with the statistics that it keeps."""

from __future__ import annotations

import torch
from torch import fx, nn

from reparam.algebra import AffineConv, Norm, batch_norm
from reparam.analysis import Facts
from reparam.capture import is_of_torch, torch_name
from reparam.modules import fetch

_EPS = {"batch_norm": 7, "native_batch_norm": 7, "_native_batch_norm_legit_no_training": 6}
"""Where ATen's batch norms take the number that they add to the variance."""


def batch_norm_of(node: fx.Node, form: AffineConv, facts: Facts) -> Norm | None:
    """The batch norm of an operator with this form, if it is one that may have another weight.

    A function in somebody's code may not: a module in its place would train otherwise.
    """
    axes = len(form.axes or ())
    if node.op == "call_module":
        module = fetch(facts.root, str(node.target))
        if not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            return None
        statistics = dict(module.named_buffers(recurse=False))
        settings = module.eps, module.momentum
        return batch_norm(statistics, axes, *settings) if is_of_torch(type(module)) else None
    name = torch_name(node)
    if name not in _EPS or not isinstance(node.target, torch._ops.OpOverload):
        return None
    held = {"running_mean": node.args[3], "running_var": node.args[4]}
    tensors = {
        name: facts.constants.as_it_runs(constant)
        for name, constant in held.items()
        if isinstance(constant, fx.Node)
    }
    eps = node.args[_EPS[name]]
    if len(tensors) < len(held) or not isinstance(eps, float):
        return None
    return batch_norm(tensors, axes, eps)
