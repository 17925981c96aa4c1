r"""Batch norm at inference (arXiv 1502.03167, algorithm 2).

v = (x - mean) / sqrt(variance + eps) * weight + bias
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.algebra import AffineConv
from reparam.errors import Refusal
from reparam.rules.registry import register_rule, spellings
from reparam.rules.steps import Several

aten = torch.ops.aten


@register_rule(F.batch_norm)
def batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: Any = False,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
) -> AffineConv | Refusal:
    """Batch norm by fixed statistics; its channels are axis 1, so the rank must be known."""
    if not isinstance(input, AffineConv):
        return Refusal("its input is a constant or not a tensor")
    if training is not False or running_mean is None or running_var is None:
        return Refusal("it normalises by the statistics of the batch")
    if not isinstance(running_mean, Tensor) or not isinstance(running_var, Tensor):
        return Refusal("its statistics are computed from the model's input")
    if not isinstance(weight, Tensor | None) or not isinstance(bias, Tensor | None):
        return Refusal("its weight or bias is computed from the model's input")
    if input.rank is None:
        return Refusal(
            "the number of axes of its input is not known, and so neither its channel axis; "
            "pass example_inputs"
        )
    return input.normalize(running_mean, running_var, weight, bias, eps, axis=1 - input.rank)


@register_rule(*spellings("batch_norm", "torch aten"))
def native_batch_norm(
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: Any,
    momentum: Any,
    eps: Any,
    cudnn_enabled: Any = True,
) -> AffineConv | Refusal:
    """Batch norm with the order of arguments that torch uses inside."""
    return batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


@register_rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
def batch_norm_module(module: nn.BatchNorm2d, x: AffineConv) -> AffineConv | Refusal:
    """Batch norm in eval mode, by its running statistics if it has any."""
    return batch_norm(
        x,
        module.running_mean,
        module.running_var,
        module.weight,
        module.bias,
        training=module.training,
        eps=module.eps,
    )


_STATISTICS = Refusal("the statistics that a batch norm was given")


@register_rule(*spellings("native_batch_norm"))
def batch_norm_and_batch_statistics(
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: Any,
    momentum: Any,
    eps: Any,
) -> Several | Refusal:
    """Batch norm that returns the statistics it used, which are empty outside training."""
    normalized = batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if isinstance(normalized, Refusal):
        return normalized
    return Several((normalized, _STATISTICS, _STATISTICS))


@register_rule(aten._native_batch_norm_legit_no_training)
def batch_norm_and_statistics(
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    momentum: Any,
    eps: Any,
) -> Several | Refusal:
    """Batch norm as core ATen writes it: the first of three results."""
    return batch_norm_and_batch_statistics(
        input, weight, bias, running_mean, running_var, False, momentum, eps
    )
