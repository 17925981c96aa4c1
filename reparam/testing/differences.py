"""In what two affine maps of one tensor differ: in size, constant or kernel, or at the border.

A map f is its constant f(0) and its linear part f(x) - f(0). Far from every border a convolution's
linear part knows its kernel only; so what agrees there and differs elsewhere is a border.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]

_ROUNDING = 1e-9


class ChannelAxisError(Exception):
    """A map does not take an input, since its channels lie along another axis."""


def difference(expected: Map, actual: Map, x: Tensor, count: int) -> tuple[float, str]:
    """How far apart a module's forward and what a rule says that it computes are on an input.

    The input is random and in float64; so many spatial axes follow the channels of the result.

    Returns:
        The largest difference relative to the largest value, and what it is that differs; nothing
        if the maps agree up to rounding.
    """
    value = expected(x.clone())
    try:
        formal = actual(x.clone())
    except ChannelAxisError as problem:
        return float("inf"), str(problem)
    if value.shape != formal.shape:
        return float("inf"), (
            f"the border (forward returns the shape {tuple(value.shape)}, the rule's form "
            f"{tuple(formal.shape)}: kernel size, stride or padding are others)"
        )
    if not value.isfinite().all():
        return float("inf"), "what forward returns itself: values that are infinite or not a number"
    error = _distance(value, formal)
    if error <= _ROUNDING:
        return error, ""
    index = tuple(int(i) for i in torch.unravel_index((value - formal).abs().argmax(), value.shape))
    return error, (
        f"{_kind(expected, actual, x, count)}; the largest difference, "
        f"{float((value - formal).abs().max()):.2g}, is at index {index}, where forward returns "
        f"{float(value[index]):.4g} and the rule's form gives {float(formal[index]):.4g}"
    )


def _distance(expected: Tensor, actual: Tensor, scale: Tensor | None = None) -> float:
    if not expected.numel():
        return 0.0
    largest = float((expected if scale is None else scale).abs().max())
    difference = float((expected - actual).abs().max())
    return difference / largest if largest else difference


def _kind(expected: Map, actual: Map, x: Tensor, count: int) -> str:
    zero, value = torch.zeros_like(x), expected(x.clone())
    constant, formal = expected(zero.clone()), actual(zero.clone())
    linear, other = value - constant, actual(x.clone()) - formal
    if _distance(expected(-2 * x), 3 * constant - 2 * value, value) > _ROUNDING:
        return "forward itself (it is not affine in its input, so that the rule has to refuse)"
    inside: tuple[Any, ...] = (
        ...,
        *(slice(size // 3, size - size // 3) for size in value.shape[value.dim() - count :]),
    )
    kinds = []
    if _distance(linear[inside], other[inside], value) > _ROUNDING:
        kinds.append(_of_kernels(x, linear[inside], other[inside], inside, count))
    if _distance(constant[inside], formal[inside], value) > _ROUNDING:
        kinds.append(_of_constants(constant, formal))
    if not kinds:
        return "the border (far from it they agree: the padding, or its mode, is another)"
    return ", and ".join(kinds)


def _of_constants(constant: Tensor, formal: Tensor) -> str:
    if not formal.any():
        return "the constant (forward adds a bias that the rule forgets)"
    if not constant.any():
        return "the constant (the rule adds a bias that forward does not)"
    return "the constant (forward and the rule add other biases)"


def _of_kernels(
    x: Tensor, linear: Tensor, other: Tensor, inside: tuple[Any, ...], count: int
) -> str:
    """How two linear parts differ: the axis of a scale, factors, the order of channels, or all."""
    if x[inside].shape == linear.shape:
        axes, formal = (_varies_along(part / x[inside]) for part in (linear, other))
        if axes != formal and max(len(axes), len(formal)) == 1:  # two scales
            return (
                f"the scale axis (forward scales along {_named(axes, x)}, the rule along "
                f"{_named(formal, x)})"
            )
    rows, formal_rows = (part.movedim(-count - 1, 0).flatten(1) for part in (linear, other))
    norms = formal_rows.square().sum(1).clamp_min(1e-300)
    factors = (rows * formal_rows).sum(1) / norms
    if _distance(rows, factors[:, None] * formal_rows) <= _ROUNDING:
        channel = int((factors - 1).abs().argmax())
        return (
            f"the scale per channel (channel {channel} of forward is {float(factors[channel]):.4g} "
            "times what the rule's form gives)"
        )
    nearest = torch.cdist(rows, formal_rows).argmin(1)
    if _distance(rows, formal_rows[nearest]) <= _ROUNDING:
        return f"the order of the channels (forward's are the form's {nearest.tolist()})"
    return "the kernel (the weights, since it is far from every border)"


def _varies_along(ratio: Tensor) -> set[int]:
    """The axes along which a ratio is not the same."""
    bound = _ROUNDING * float(ratio.abs().max())
    return {
        axis
        for axis in range(ratio.dim())
        if float((ratio.amax(axis) - ratio.amin(axis)).max()) > bound
    }


def _named(axes: set[int], x: Tensor) -> str:
    return " and ".join(f"axis {axis - x.dim()}" for axis in sorted(axes)) or "no axis"
