"""Operators by their tensors: how torch computes them, and the affine form that says the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from reparam import AffineConv, Refusal
from reparam.algebra.affine import identity
from reparam.algebra.axis_composition import Axis

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
MODES = ("reflect", "circular", "replicate")
LARGEST = 15
BOUND = 1e-11

_CONVOLVE = (F.linear, F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSE = (None, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Operator:
    """A convolution of any kind; a linear layer without axes."""

    weight: Tensor
    bias: Tensor | None
    axes: tuple[Axis, ...]
    groups: int = 1
    transposed: bool = False

    def form(self, x: AffineConv | None = None) -> AffineConv | Refusal:
        return (x or identity()).convolve(
            self.weight,
            self.bias,
            axes=self.axes,
            groups=self.groups,
            transposed=self.transposed,
        )

    def __call__(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.double()
        return convolve(
            x, self.weight.double(), bias, self.axes, self.groups, transposed=self.transposed
        )


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    axes: Sequence[Axis],
    groups: int,
    *,
    transposed: bool = False,
    value: Tensor | None = None,
) -> Tensor:
    """The operator as torch computes it, its padding and cropping written out."""
    count = len(axes)
    if count == 0:
        return F.linear(x, weight, bias)
    strides, dilations = [a.stride for a in axes], [a.dilation for a in axes]
    if transposed:
        y = _TRANSPOSE[count](x, weight, None, strides, 0, 0, groups, dilations)
        ends = [side for a in reversed(axes) for side in (-a.before, a.output_padding - a.after)]
        y = F.pad(y, ends)
        return y if bias is None else y + bias.view(-1, *(1,) * count)
    x = pad(x, axes, value)
    return _CONVOLVE[count](x, weight, bias, strides, 0, dilations, groups)


def pad(x: Tensor, axes: Sequence[Axis], value: Tensor | None = None) -> Tensor:
    """Extend and crop the last axes."""
    sides = [side for axis in reversed(axes) for side in (axis.before, axis.after)]
    mode = next((axis.mode for axis in axes if axis.padded), "zeros")
    outward = [max(side, 0) for side in sides]
    if mode == "value":
        shift = value.view(-1, *(1,) * len(axes))
        x = F.pad(x - shift, outward) + shift
    elif any(outward):
        x = F.pad(x, outward, mode="constant" if mode == "zeros" else mode)
    return F.pad(x, [min(side, 0) for side in sides])


def computed(form: AffineConv) -> Function:
    """What a form says a value is, from its weights alone."""
    weight, bias = form.weights.evaluate()
    taps = [axis.kernel for axis in form.axes]
    assert weight.dtype == torch.float64
    assert list(weight.shape) == [form.out_channels, form.in_channels // form.groups, *taps]
    assert (bias is not None) == form.has_bias
    if form.transposed:  # torch keeps the channels of a transposed weight the other way round
        weight = weight.unflatten(0, (form.groups, -1)).transpose(1, 2).flatten(0, 1)
    transposed, value = form.transposed, form.pad_value
    return lambda x: convolve(
        x, weight, bias, form.axes, form.groups, transposed=transposed, value=value
    )


def apply(form: AffineConv, x: Tensor) -> Tensor:
    """The value of a form for one input."""
    return computed(form)(x)


def resolved(form: Any, channels: int, count: int) -> AffineConv:
    """A form whose channels and axes are known."""
    assert isinstance(form, AffineConv), form
    form = form if form.axes is not None else form.with_axes(count)
    return form.with_channels(channels)


def inputs(channels: int, count: int, largest: int = LARGEST) -> Iterator[Tensor]:
    """One input per size from 1 to the largest; the axes differ."""
    generator = torch.Generator().manual_seed(channels)
    for size in range(largest):
        sizes = [(size + 4 * axis) % largest + 1 for axis in range(count)]
        yield torch.randn(2, channels, *sizes, dtype=torch.float64, generator=generator)


def runs(original: Function, channels: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Each input that is large enough for an operator, and what it gives."""
    for x in inputs(channels, count, LARGEST if count < 3 else 9):
        try:
            expected = original(x)
        except RuntimeError:
            continue
        if expected.numel():
            yield x, expected


def assert_same(form: AffineConv, channels: int, original: Function) -> None:
    """Wherever the original runs, the form runs too and gives the same numbers."""
    value, ran = computed(form), False
    for x, expected in runs(original, channels, len(form.axes)):
        close(value(x), expected)
        ran = True
    assume(ran)  # some sequences shrink every input to nothing


def close(actual: Tensor, expected: Tensor) -> None:
    """Equal but for rounding in float64."""
    assert actual.shape == expected.shape
    error = float((actual - expected).abs().max())
    assert error <= BOUND * (1 + float(expected.abs().max())), f"differs by {error:.1e}"


# -- Strategies -----------------------------------------------------------------------------------

channels = st.sampled_from((1, 2, 3, 4, 6))
counts = st.sampled_from((1, 1, 1, 2, 2, 3))
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**16)


@st.composite
def axis(draw: Any, *, stride: int | None = None, mode: str = "zeros", kernel: Any = None) -> Axis:
    """Any kernel, stride, dilation and padding per side; crops and unpadded axes among them."""
    taps = draw(st.sampled_from((1, 1, 2, 3, 3, 4))) if kernel is None else kernel
    dilation = draw(st.sampled_from((1, 1, 2, 3)))
    reach = dilation * (taps - 1)
    side = st.one_of(st.just(0), st.sampled_from((0, reach // 2, reach)), st.integers(-1, 2))
    before, after = draw(side), draw(side)
    step = draw(st.sampled_from((1, 1, 2, 3))) if stride is None else stride
    return Axis(taps, step, dilation, before, after, mode if max(before, after) > 0 else "zeros")


@st.composite
def transposed_axis(draw: Any, *, stride: int | None = None) -> Axis:
    """An axis as torch's transposed convolutions have them."""
    taps, dilation = draw(st.sampled_from((1, 2, 3, 4))), draw(st.sampled_from((1, 1, 2)))
    step = draw(st.sampled_from((1, 2, 2, 3))) if stride is None else stride
    side = draw(st.integers(0, min(dilation * (taps - 1), 2)))
    extra = draw(st.integers(0, max(step, dilation) - 1))
    return Axis(taps, step, dilation, side, side, output_padding=extra)


def random_tensor(shape: Sequence[int], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


@st.composite
def operators(
    draw: Any,
    in_channels: int,
    out_channels: int,
    axes: Sequence[Axis],
    *,
    dtype: torch.dtype = torch.float64,
    bias: bool | None = None,
    transposed: bool = False,
) -> Operator:
    """An operator of given channels and axes, with random groups and tensors."""
    common = [g for g in (1, 2, 3, 4, 6) if in_channels % g == 0 == out_channels % g]
    groups = draw(st.sampled_from(common)) if axes else 1
    shape = [out_channels, in_channels // groups]
    if transposed:
        shape = [in_channels, out_channels // groups]
    seed = draw(seeds)
    weight = random_tensor([*shape, *(a.kernel for a in axes)], seed, dtype)
    has_bias = draw(st.booleans()) if bias is None else bias
    constant = random_tensor([out_channels], seed + 1, dtype) if has_bias else None
    return Operator(weight, constant, tuple(axes), groups, transposed)


@st.composite
def convolutions(
    draw: Any,
    in_channels: int,
    out_channels: int,
    count: int,
    *,
    modes: Sequence[str] = ("zeros", "zeros", *MODES),
    dtype: torch.dtype = torch.float64,
    bias: bool | None = None,
    stride: int | None = None,
) -> Operator:
    """A convolution over some axes; one padding mode for all of them, as in torch."""
    mode = draw(st.sampled_from(tuple(modes)))
    axes = [draw(axis(mode=mode, stride=stride)) for _ in range(count)]
    return draw(operators(in_channels, out_channels, axes, dtype=dtype, bias=bias))


@st.composite
def transposed_convolutions(
    draw: Any,
    in_channels: int,
    out_channels: int,
    count: int,
    *,
    bias: bool | None = None,
) -> Operator:
    """A transposed convolution over some axes."""
    axes = [draw(transposed_axis()) for _ in range(count)]
    return draw(operators(in_channels, out_channels, axes, bias=bias, transposed=True))


@st.composite
def branch_beside(draw: Any, other: Operator, *, dtype: torch.dtype) -> Operator:
    """Another operator whose result has the size of a given one's, whatever the input's size."""
    axes = []
    for one in other.axes:
        if other.transposed:
            two = draw(transposed_axis(stride=one.stride))
            extra = one.transposed_excess - two.reach + 2 * two.before
            fits = 0 <= extra < max(two.stride, two.dilation)
            axes.append(replace(two, output_padding=extra) if fits else one)
        else:
            two = draw(axis(stride=one.stride))
            after = one.excess + two.reach - two.before
            padded = max(two.before, after) > 0
            mode = next((a.mode for a in other.axes if a.padded), "zeros")
            axes.append(replace(two, after=after, mode=mode if padded else "zeros"))
    rows, columns = other.weight.shape[0], other.weight.shape[1] * other.groups
    if other.transposed:
        rows, columns = columns, rows
    return draw(operators(columns, rows, axes, dtype=dtype, transposed=other.transposed))
