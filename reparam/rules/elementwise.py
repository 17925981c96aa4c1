r"""Sums of branches, scales and shifts, and what changes no number in eval mode.

v = x + alpha * y        v = x * factor        v = x / divisor        v = -x
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reparam.algebra import Affine, AffineConv, AffineSum
from reparam.errors import Refusal
from reparam.rules.registry import register_rule, spellings
from reparam.rules.steps import Stacked


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _channel_axis(x: Affine, constant: Any) -> int | Refusal | None:
    """Along which axis, counted from the end, a constant broadcasts over a value."""
    if not isinstance(constant, Tensor):
        return None
    rank = x.rank if isinstance(x, AffineConv) else None
    long_axes = [axis for axis in range(-constant.dim(), 0) if constant.shape[axis] != 1]
    if len(long_axes) > 1:
        return Refusal("a constant that varies along more than one axis")
    if constant.dim() > 1 and (rank is None or rank < constant.dim()):
        if rank is None:
            return Refusal(
                "the number of axes of the value is not known, so neither how a constant "
                "broadcasts over it; pass example_inputs"
            )
        return Refusal("a constant with more axes than the value it meets")
    return long_axes[0] if long_axes else None


def _scale(x: Any, factor: Any) -> Affine | Refusal:
    if not isinstance(x, AffineConv | AffineSum):
        return Refusal("an operand that is no tensor")
    if not isinstance(factor, Tensor) and not _is_number(factor):
        return Refusal("a product of two values that both depend on the input")
    axis = _channel_axis(x, factor)
    return axis if isinstance(axis, Refusal) else x.scale(factor, axis)


def _shift(x: Affine, constant: Any) -> Affine | Refusal:
    axis = _channel_axis(x, constant)
    return axis if isinstance(axis, Refusal) else x.shift(constant, axis)


def _times(value: Any, factor: Any) -> Any:
    """A multiple of a form, a tensor or a number."""
    if isinstance(factor, int | float) and factor == 1:
        return value
    if isinstance(value, AffineConv | AffineSum):
        return value.scale(factor)
    if isinstance(value, Tensor) or _is_number(value):
        return value * factor
    return Refusal("an operand that is known only at run time")


@register_rule(*spellings("add", in_place=True))
def add(input: Any, other: Any, *, alpha: Any = 1) -> Affine | Refusal:
    """A sum of two branches, or of a branch and a constant."""
    if not _is_number(alpha):
        return Refusal("a factor that is known only at run time")
    other = _times(other, alpha)
    for operand in (input, other):
        if isinstance(operand, Refusal):
            return operand
        if not isinstance(operand, AffineConv | AffineSum | Tensor) and not _is_number(operand):
            return Refusal("an operand that is known only at run time")
    if isinstance(input, AffineConv | AffineSum):
        if isinstance(other, AffineConv | AffineSum):
            return input.plus(other)
        return _shift(input, other)
    if isinstance(other, AffineConv | AffineSum):
        return _shift(other, input)
    return Refusal("a sum of constants")


@register_rule(
    *spellings("sub", in_place=True), *spellings("subtract", "torch Tensor", in_place=True)
)
def subtract(input: Any, other: Any, *, alpha: Any = 1) -> Affine | Refusal:
    """A difference of two branches, or of a branch and a constant."""
    if not _is_number(alpha):
        return Refusal("a factor that is known only at run time")
    return add(input, _times(other, -alpha))


@register_rule(*spellings("rsub"))
def reversed_subtract(input: Any, other: Any, *, alpha: Any = 1) -> Affine | Refusal:
    """``other - alpha * input``."""
    return subtract(other, input, alpha=alpha)


@register_rule(
    *spellings("mul", in_place=True), *spellings("multiply", "torch Tensor", in_place=True)
)
def multiply(input: Any, other: Any) -> Affine | Refusal:
    """A product with a number or with one factor per channel."""
    if isinstance(input, AffineConv | AffineSum):
        return _scale(input, other)
    return _scale(other, input)


@register_rule(
    *spellings("truediv div", in_place=True),
    *spellings("divide true_divide", "torch Tensor", in_place=True),
)
def divide(input: Any, other: Any, *, rounding_mode: Any = None) -> Affine | Refusal:
    """A quotient by a number or by one divisor per channel."""
    if rounding_mode is not None:
        return Refusal("a division that rounds")
    if _is_number(other):
        return Refusal("a division by zero") if other == 0 else _scale(input, 1 / other)
    if isinstance(other, Tensor):
        return _scale(input, other.double().reciprocal())
    return Refusal("a quotient of two values that both depend on the input")


@register_rule(
    *spellings("neg", in_place=True), *spellings("negative", "torch Tensor", in_place=True)
)
def negate(input: Any) -> Affine | Refusal:
    """The negative of a value."""
    return _scale(input, -1)


@register_rule(*spellings("stack"))
def stack(tensors: Any, dim: Any = 0) -> Stacked | Refusal:
    """Branches along a new axis; they add up once `total` sums over it."""
    if not isinstance(tensors, Sequence) or not isinstance(dim, int):
        return Refusal("stacked tensors that are known only at run time")
    branches = tuple(tensor for tensor in tensors if isinstance(tensor, AffineConv))
    if len(branches) != len(tensors):
        return Refusal("stacked tensors of which some are constants")
    return Stacked(branches, dim)


@register_rule(*spellings("sum"))
def total(input: Any, dim: Any = None, keepdim: Any = False, *, dtype: Any = None) -> Any:
    """The sum over stacked branches."""
    dims = (dim,) if isinstance(dim, int) else dim
    if not isinstance(input, Stacked) or keepdim is not False or dtype is not None:
        return Refusal("a sum over an axis of one value")
    if not isinstance(dims, Sequence) or tuple(dims) != (input.dim,):
        return Refusal("a sum over another axis than the stacked one")
    result: Affine = input.branches[0]
    for branch in input.branches[1:]:
        partial = result.plus(branch)
        if isinstance(partial, Refusal):
            return partial
        result = partial
    return result


@register_rule(*spellings("addcmul"), torch.Tensor.addcmul_)
def add_product(input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Affine | Refusal:
    """``input + value * tensor1 * tensor2``."""
    if isinstance(tensor1, Tensor) and isinstance(tensor2, Tensor):
        product: Any = tensor1.double() * tensor2.double()
    else:
        product = multiply(tensor1, tensor2)
    return product if isinstance(product, Refusal) else add(input, product, alpha=value)


@register_rule(nn.LeakyReLU)
def leaky_relu_module(module: nn.LeakyReLU, x: AffineConv) -> AffineConv | Refusal:
    """A leaky ReLU of slope 1 is the identity (VanillaNet, arXiv 2305.12972)."""
    return leaky_relu(x, module.negative_slope)


@register_rule(*spellings("leaky_relu", in_place=True))
def leaky_relu(
    input: Any, negative_slope: Any = 0.01, inplace: Any = False
) -> AffineConv | Refusal:
    """A leaky ReLU of slope 1 is the identity (VanillaNet, arXiv 2305.12972)."""
    if isinstance(input, AffineConv) and _is_number(negative_slope) and negative_slope == 1:
        return input
    return Refusal("not an affine operator")


@register_rule(
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
def identity_module(module: nn.Module, x: AffineConv) -> AffineConv | Refusal:
    """The identity, and dropout in eval mode."""
    if module.training and type(module) is not nn.Identity:
        return Refusal("dropout in training mode")
    return x


@register_rule(
    *spellings("dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout", "F")
)
def dropout(
    input: Any, p: Any = 0.5, training: Any = True, inplace: Any = False
) -> AffineConv | Refusal:
    """Dropout outside training."""
    if training is not False or not isinstance(input, AffineConv):
        return Refusal("dropout in training mode")
    return input


@register_rule(
    *spellings("dropout", "torch aten"), *spellings("feature_dropout alpha_dropout", "aten")
)
def native_dropout(input: Any, p: Any, train: Any) -> AffineConv | Refusal:
    """Dropout outside training."""
    return dropout(input, p, train)
