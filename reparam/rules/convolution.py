r"""Convolutions, transposed convolutions and linear layers.

v[o] = b + sum over t of W[t] * x[s * o + d * t - p]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reparam.algebra import AffineConv, Axis, PaddingMode
from reparam.errors import Refusal
from reparam.rules.registry import register_rule, spellings


def spread(value: Any, count: int) -> tuple[int, ...] | None:
    """One integer per axis, from one for all or from a sequence; None if they are not known."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    if len(values) == 1:
        values *= count
    integers = all(isinstance(entry, int) for entry in values)
    return values if integers and len(values) == count else None


@register_rule(*spellings("convolution"))
def general_convolution(
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: Any,
    output_padding: Any,
    groups: Any,
    *,
    mode: PaddingMode = "zeros",
) -> AffineConv | Refusal:
    """ATen's one convolution for all kinds."""
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor | None):
        return Refusal("its weight or bias is computed from the model's input")
    if not isinstance(input, AffineConv):
        return Refusal("its input is a constant or not a tensor")
    kernel = tuple(weight.shape[2:])
    count = len(kernel)
    strides, dilations = spread(stride, count), spread(dilation, count)
    outputs = spread(output_padding, count)
    if strides is None or dilations is None or outputs is None or not isinstance(groups, int):
        return Refusal("its stride, dilation or groups are known only at run time")
    if padding == "same":
        # torch puts the odd one at the end.
        totals = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        pads = [(total // 2, total - total // 2) for total in totals]
    else:
        paddings = spread(0 if padding == "valid" else padding, count)
        if paddings is None:
            return Refusal("its padding is known only at run time")
        pads = [(side, side) for side in paddings]
    axes = [
        Axis(k, s, d, before, after, mode, output)
        for k, s, d, (before, after), output in zip(
            kernel, strides, dilations, pads, outputs, strict=True
        )
    ]
    return input.convolve(weight, bias, axes=axes, groups=groups, transposed=bool(transposed))


@register_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution_module(module: nn.Conv2d, x: AffineConv) -> AffineConv | Refusal:
    """A convolution of any padding mode."""
    return _of_module(module, x, mode=module.padding_mode)


@register_rule(*spellings("conv1d conv2d conv3d"))
def convolution_function(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
) -> AffineConv | Refusal:
    """A convolution with zero padding."""
    return general_convolution(input, weight, bias, stride, padding, dilation, False, 0, groups)


@register_rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def transposed_module(
    module: nn.ConvTranspose2d, x: AffineConv, output_size: Any = None
) -> AffineConv | Refusal:
    """A transposed convolution."""
    if output_size is not None:
        return Refusal("its output size is given at run time")
    return _of_module(module, x)


def _of_module(
    module: nn.Conv2d | nn.ConvTranspose2d, x: AffineConv, mode: Any = "zeros"
) -> AffineConv | Refusal:
    return general_convolution(
        x,
        module.weight,
        module.bias,
        module.stride,
        module.padding,
        module.dilation,
        module.transposed,
        module.output_padding,
        module.groups,
        mode=mode,
    )


@register_rule(*spellings("conv_transpose1d conv_transpose2d conv_transpose3d"))
def transposed_function(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: Any = 1,
    dilation: Any = 1,
) -> AffineConv | Refusal:
    """A transposed convolution."""
    return general_convolution(
        input, weight, bias, stride, padding, dilation, True, output_padding, groups
    )


@register_rule(nn.Linear)
def linear_module(module: nn.Linear, x: AffineConv) -> AffineConv | Refusal:
    """A linear layer: a kernel with no spatial axis."""
    return x.convolve(module.weight, module.bias)


@register_rule(*spellings("linear"))
def linear(input: Any, weight: Any, bias: Any = None) -> AffineConv | Refusal:
    """A linear layer: a kernel with no spatial axis."""
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor | None):
        return Refusal("its weight or bias is computed from the model's input")
    if not isinstance(input, AffineConv) or weight.dim() != 2:
        return Refusal("its input is a constant, or its weight is no matrix")
    return input.convolve(weight, bias)


@register_rule(*spellings("matmul mm"), torch.Tensor.__matmul__)
def matrix_product(input: Any, other: Any) -> AffineConv | Refusal:
    """A product with a constant matrix on the right."""
    if not isinstance(other, Tensor):
        return Refusal("a product of two values that both depend on the input")
    return linear(input, other.t() if other.dim() == 2 else other)


@register_rule(*spellings("addmm"))
def matrix_product_and_bias(
    input: Any, mat1: Any, mat2: Any, *, beta: Any = 1, alpha: Any = 1
) -> AffineConv | Refusal:
    """A product with a constant matrix on the right, plus a constant row."""
    if beta != 1 or alpha != 1 or not isinstance(mat2, Tensor):
        return Refusal("a matrix product of another form than x @ W + b")
    if not isinstance(input, Tensor) or input.dim() != 1 or input.numel() != mat2.shape[-1]:
        return Refusal("a matrix product with another bias than one entry per column")
    return linear(mat1, mat2.t(), input)
