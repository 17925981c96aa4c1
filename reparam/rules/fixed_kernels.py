r"""Padding, cropping and average pools: depthwise kernels with equal taps.

v[o] = sum over t of x[s * o + t - p] / (number of taps)
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import nn

from reparam.algebra import AffineConv, Axis, PaddingMode
from reparam.errors import Refusal
from reparam.rules.convolution import spread
from reparam.rules.registry import register_rule, spellings
from reparam.rules.steps import Commuting
from reparam.rules.views import spatial

aten = torch.ops.aten

_MODES: dict[str, PaddingMode] = {
    "constant": "zeros",
    "reflect": "reflect",
    "replicate": "replicate",
    "circular": "circular",
}


Padded = AffineConv | Commuting | Refusal

_WRAPS_WHAT_IS_LEFT = Refusal("circular padding that crops the other side repeats what is left")


@register_rule(*spellings("pad"), aten.constant_pad_nd)
def pad(input: Any, pad: Any, mode: Any = "constant", value: Any = None) -> Padded:
    """Padding or cropping of the last axes, the last one first."""
    if not isinstance(mode, str):  # ATen's constant_pad_nd has no mode
        mode, value = "constant", mode
    if not isinstance(input, AffineConv):
        return Refusal("its input is a constant or not a tensor")
    if not isinstance(pad, Sequence) or not all(isinstance(side, int) for side in pad):
        return Refusal("its padding is known only at run time")
    value = 0 if value is None else value
    if mode not in _MODES or not isinstance(value, int | float):
        return Refusal(f"padding of mode {mode!r} by {value!r}")
    pairs = list(zip(pad[::2], pad[1::2], strict=True))
    while pairs and pairs[-1] == (0, 0):
        pairs.pop()
    if input.rank is not None:
        pairs += [(0, 0)] * (input.rank - 2 - len(pairs))
    if mode == "circular" and any(min(pair) < 0 < max(pair) for pair in pairs):
        # Torch crops first, and what it pads then is not how the input goes on.
        return spatial(input, len(pairs), refusal=_WRAPS_WHAT_IS_LEFT)
    kind: PaddingMode = "value" if mode == "constant" and value != 0 else _MODES[mode]
    axes = [
        Axis(before=before, after=after, mode=kind if before > 0 or after > 0 else "zeros")
        for before, after in reversed(pairs)
    ]
    return input.pad(axes, value) if axes else input


@register_rule(
    nn.ZeroPad1d,
    nn.ZeroPad2d,
    nn.ZeroPad3d,
    nn.ConstantPad1d,
    nn.ConstantPad2d,
    nn.ConstantPad3d,
)
def constant_pad(module: nn.ConstantPad2d, x: AffineConv) -> Padded:
    """Padding with one number."""
    return pad(x, module.padding, "constant", module.value)


@register_rule(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)
def reflection_pad(module: nn.ReflectionPad2d, x: AffineConv) -> Padded:
    """Padding by reflection."""
    return pad(x, module.padding, "reflect")


@register_rule(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d)
def replication_pad(module: nn.ReplicationPad2d, x: AffineConv) -> Padded:
    """Padding by the border's own values."""
    return pad(x, module.padding, "replicate")


@register_rule(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d)
def circular_pad(module: nn.CircularPad2d, x: AffineConv) -> Padded:
    """Padding by the opposite border."""
    return pad(x, module.padding, "circular")


def average_pool(
    x: Any,
    count: int,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: Any,
    count_include_pad: Any,
    divisor_override: Any,
) -> AffineConv | Commuting | Refusal:
    """The law of every average pool, however it is spelled."""
    if not isinstance(x, AffineConv):
        return Refusal("its input is a constant or not a tensor")
    if stride is None or (isinstance(stride, Sequence) and len(stride) == 0):
        stride = kernel_size
    kernel, strides, paddings = (spread(size, count) for size in (kernel_size, stride, padding))
    if kernel is None or strides is None or paddings is None:
        return Refusal("its window is known only at run time")
    padded, counted = any(paddings), count_include_pad is True
    refusal = None
    if ceil_mode is not False:
        refusal = Refusal("windows that hang over the border (ceil_mode)")
    elif padded and not counted and divisor_override is None:
        refusal = Refusal("the divisor changes at the border (count_include_pad=False)")
    if refusal is not None:
        averages = divisor_override is None and not (padded and counted)
        return spatial(x, count, constants=averages, refusal=refusal)
    axes = [Axis(k, s, 1, side, side) for k, s, side in zip(kernel, strides, paddings, strict=True)]
    pooled = x.pool(axes)
    if divisor_override is None or isinstance(pooled, Refusal):
        return pooled
    return pooled.scale(prod(kernel) / divisor_override)


@register_rule(*spellings("avg_pool1d"))
def average_pool_1d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: Any = False,
    count_include_pad: Any = True,
) -> AffineConv | Commuting | Refusal:
    """An average pool over one axis."""
    return average_pool(input, 1, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


@register_rule(*spellings("avg_pool2d"))
def average_pool_2d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: Any = False,
    count_include_pad: Any = True,
    divisor_override: Any = None,
) -> AffineConv | Commuting | Refusal:
    """An average pool over two axes."""
    return average_pool(
        input, 2, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


@register_rule(*spellings("avg_pool3d"))
def average_pool_3d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: Any = False,
    count_include_pad: Any = True,
    divisor_override: Any = None,
) -> AffineConv | Commuting | Refusal:
    """An average pool over three axes."""
    return average_pool(
        input, 3, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


@register_rule(*_POOLS)
def average_pool_module(module: nn.AvgPool2d, x: AffineConv) -> AffineConv | Commuting | Refusal:
    """An average pool over one to three axes."""
    return average_pool(
        x,
        next(count for count, pool in enumerate(_POOLS, start=1) if isinstance(module, pool)),
        module.kernel_size,
        module.stride,
        module.padding,
        module.ceil_mode,
        module.count_include_pad,
        getattr(module, "divisor_override", None),  # no pool over one axis has it
    )
