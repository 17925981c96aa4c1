r"""Batch norm at inference (arXiv 1502.03167, algorithm 2), and what other norms end with.

v = (x - mean) / sqrt(variance + eps) * weight + bias
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.algebra import (
    AffineConv,
    Norm,
    ending,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)
from reparam.errors import Refusal
from reparam.rules.registry import register_rule, spellings
from reparam.rules.steps import UNKNOWN_RANK, Normalized, Several, Unscalable

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


# -- Norms by statistics of their input --------------------------------------------------------


_PER_POSITION = Unscalable(Refusal("its weight has more axes than that of the channels"))
_COMPUTED = Unscalable(Refusal("its weight or bias is computed from the model's input"))


def _normalized(x: Any, weight: Any, bias: Any, axis: int, norm: Norm) -> Any:
    """A norm whose weight and bias are constants, one entry per channel."""
    if not isinstance(x, AffineConv):
        return NotImplemented
    if not all(isinstance(t, Tensor | None) for t in (weight, bias)):
        return _COMPUTED
    form = ending(x, weight, bias, norm.channels, axis)
    return form if isinstance(form, Refusal) else Normalized(form, norm)


def _last_axis(normalized_shape: Any) -> int | None:
    """The number of channels of a norm over the last axis alone."""
    sizes = normalized_shape if isinstance(normalized_shape, Sequence) else (normalized_shape,)
    return sizes[0] if len(sizes) == 1 and isinstance(sizes[0], int) else None


@register_rule(*spellings("layer_norm", "torch F aten"))
def layer_norm_function(
    input: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: Any = 1e-5,
    cudnn_enable: Any = True,
) -> Any:
    """A layer norm over the last axis: what scales it goes into its weight and bias."""
    channels = _last_axis(normalized_shape)
    if channels is None:
        return _PER_POSITION if weight is not None else NotImplemented
    return _normalized(input, weight, bias, -1, layer_norm(channels, eps))


@register_rule(nn.LayerNorm)
def layer_norm_module(module: nn.LayerNorm, x: AffineConv) -> Any:
    """A layer norm over the last axis: what scales it goes into its weight and bias."""
    return layer_norm_function(x, module.normalized_shape, module.weight, module.bias, module.eps)


@register_rule(*spellings("rms_norm", "torch F aten"))
def rms_norm_function(
    input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None
) -> Any:
    """A norm by the root mean square: what scales it goes into its weight."""
    channels = _last_axis(normalized_shape)
    if channels is None:
        return _PER_POSITION if weight is not None else NotImplemented
    return _normalized(input, weight, None, -1, rms_norm(channels, eps))


@register_rule(nn.RMSNorm)
def rms_norm_module(module: nn.RMSNorm, x: AffineConv) -> Any:
    """A norm by the root mean square: what scales it goes into its weight."""
    return rms_norm_function(x, module.normalized_shape, module.weight, module.eps)


@register_rule(*spellings("group_norm", "torch F aten"))
def group_norm_function(
    input: Any,
    num_groups: Any,
    weight: Any = None,
    bias: Any = None,
    eps: Any = 1e-5,
    cudnn_enabled: Any = True,
) -> Any:
    """A norm of groups of channels: what scales it goes into its weight and bias."""
    if not isinstance(input, AffineConv) or not isinstance(num_groups, int) or weight is None:
        return NotImplemented
    if not isinstance(weight, Tensor):
        return _COMPUTED
    if input.rank is None:
        return Unscalable(UNKNOWN_RANK)
    norm = group_norm(num_groups, weight.numel(), eps)
    return _normalized(input, weight, bias, 1 - input.rank, norm)


@register_rule(nn.GroupNorm)
def group_norm_module(module: nn.GroupNorm, x: AffineConv) -> Any:
    """A norm of groups of channels: what scales it goes into its weight and bias."""
    if module.affine or x.rank is None:
        return group_norm_function(x, module.num_groups, module.weight, module.bias, module.eps)
    norm = group_norm(module.num_groups, module.num_channels, module.eps)
    return _normalized(x, None, None, 1 - x.rank, norm)


@register_rule(F.instance_norm)
def instance_norm_function(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: Any = True,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
) -> Any:
    """A norm of each channel by itself (arXiv 1607.08022); a batch norm by fixed statistics."""
    if use_input_stats is False:
        return batch_norm(input, running_mean, running_var, weight, bias, eps=eps)
    if running_mean is not None or not isinstance(input, AffineConv) or weight is None:
        return NotImplemented
    if not isinstance(weight, Tensor):
        return _COMPUTED
    return _by_instance(input, weight, bias, weight.numel(), eps)


@register_rule(*spellings("instance_norm", "torch aten"))
def native_instance_norm(
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    use_input_stats: Any,
    momentum: Any,
    eps: Any,
    cudnn_enabled: Any = True,
) -> Any:
    """A norm of each channel by itself, with the order of arguments that torch uses inside."""
    return instance_norm_function(
        input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    )


@register_rule(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def instance_norm_module(module: nn.InstanceNorm2d, x: AffineConv) -> Any:
    """A norm of each channel by itself; in eval mode by its running statistics if it has any."""
    if module.training and module.track_running_stats:
        return NotImplemented
    statistics = module.running_mean, module.running_var
    if statistics[0] is not None:
        return batch_norm(x, *statistics, module.weight, module.bias, eps=module.eps)
    return _by_instance(x, module.weight, module.bias, module.num_features, module.eps)


def _by_instance(x: AffineConv, weight: Any, bias: Any, channels: int, eps: Any) -> Any:
    if x.rank is None:
        return Unscalable(UNKNOWN_RANK) if weight is not None else NotImplemented
    axes = x.rank - 2
    if axes not in _SPATIAL_AXES:
        return NotImplemented
    return _normalized(x, weight, bias, -1 - axes, instance_norm(channels, axes, eps))


_SPATIAL_AXES = (1, 2, 3)

_NORM_STATISTICS = Refusal("the statistics that a norm computed")


def _with_statistics(normalized: Any) -> Any:
    """A norm that returns the mean and the deviation it used, too."""
    if not isinstance(normalized, Normalized):
        return normalized
    return Several((normalized, _NORM_STATISTICS, _NORM_STATISTICS))


@register_rule(aten.native_layer_norm)
def native_layer_norm(input: Any, normalized_shape: Any, weight: Any, bias: Any, eps: Any) -> Any:
    """A layer norm as core ATen writes it: the first of three results."""
    return _with_statistics(layer_norm_function(input, normalized_shape, weight, bias, eps))


@register_rule(aten.native_group_norm)
def native_group_norm(
    input: Any, weight: Any, bias: Any, N: Any, C: Any, HxW: Any, group: Any, eps: Any
) -> Any:
    """A norm of groups of channels as core ATen writes it: the first of three results."""
    return _with_statistics(group_norm_function(input, group, weight, bias, eps))
