"""A convolution at a known size is a linear layer over channels and positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from reparam import AffineConv, Refusal
from reparam.algebra import over_positions, positions_after
from reparam.algebra.affine import identity
from reparam.algebra.axis_composition import Axis
from reparam.algebra.lowering import lower
from tests.algebra.laws.forms import (
    MODES,
    Operator,
    axis,
    channels,
    close,
    convolutions,
    counts,
    operators,
    random_tensor,
    resolved,
    seeds,
    transposed_convolutions,
)


@st.composite
def at_known_size(draw: Any) -> tuple[Operator, tuple[int, ...], int]:
    """An operator of any kind, the size of what it reads, and how many of that lie in a row."""
    c0, c1, count = draw(channels), draw(channels), draw(counts)
    if draw(st.booleans()):
        mode = draw(st.sampled_from(("zeros", *MODES)))
        axes = [draw(axis(mode=mode)) for _ in range(count)]
        operator = draw(operators(c0, c1, axes))
    else:
        kind = draw(st.sampled_from((convolutions, transposed_convolutions)))
        operator = draw(kind(c0, c1, count))
    sizes = tuple(draw(st.integers(1, 6 if count < 3 else 3)) for _ in range(count))
    return operator, sizes, draw(st.integers(1, 3))


@given(at_known_size(), seeds)
@settings(max_examples=150)
def test_a_convolution_at_a_known_size_is_a_linear_layer(
    case: tuple[Operator, tuple[int, ...], int], seed: int
) -> None:
    operator, sizes, times = case
    form = operator.form()
    assert isinstance(form, AffineConv)
    x = random_tensor((2, times, form.in_channels, *sizes), seed).double()
    try:
        expected = operator(x.flatten(0, 1))
    except RuntimeError:
        expected = torch.empty(0)
    linear = over_positions(form, sizes, times)
    if not expected.numel():
        return  # torch does not compute it, whatever is said of it
    assert isinstance(linear, AffineConv), linear
    assert positions_after(form, sizes) == expected.shape[2:]
    weight, bias = linear.weights.evaluate()
    assert tuple(weight.shape) == (linear.out_channels, linear.in_channels // linear.groups)
    module = lower(linear.with_axes(1), weight[..., None], bias)
    close(module(x.flatten(1)[..., None]).flatten(), expected.flatten())


@given(channels, seeds, st.integers(1, 4), st.integers(1, 4))
def test_what_holds_for_any_number_of_channels(c: int, seed: int, height: int, width: int) -> None:
    pooled = identity().pool([Axis(2, 1, 1, 1, 0), Axis(3, 1, 1, 1, 1)])
    assert isinstance(pooled, AffineConv)
    assert isinstance(over_positions(pooled, (height, width)), Refusal)  # of unknown channels
    linear = over_positions(resolved(pooled, c, 2), (height, width))
    assert isinstance(linear, AffineConv)
    assert linear.groups == c
    x = random_tensor((3, c, height, width), seed).double()
    expected = F.avg_pool2d(F.pad(x, (1, 1, 1, 0)), (2, 3), 1)
    weight, _ = linear.weights.evaluate()
    actual = F.conv1d(x.flatten(1)[..., None], weight[..., None], groups=c)
    close(actual.flatten(1), expected.flatten(1))


def test_the_value_itself_is_itself_at_any_size() -> None:
    x = identity("x")
    assert over_positions(x, (3, 4), 2) is x


@pytest.mark.parametrize(
    ("axes", "size"),
    [
        ([Axis(4)], 3),
        ([Axis(1, 1, 1, -2, -2)], 4),
        ([Axis(3, 1, 1, 2, 0, "reflect")], 2),
        ([Axis(5, 1, 1, 3, 1, "circular")], 2),
    ],
)
def test_sizes_that_an_operator_does_not_take(axes: list[Axis], size: int) -> None:
    form = identity().convolve(torch.ones(1, 1, axes[0].kernel), axes=axes)
    assert isinstance(form, AffineConv)
    assert isinstance(over_positions(form, (size,)), Refusal)


def test_padding_with_a_value_and_parts_of_the_channels_are_refused() -> None:
    padded = identity().pad([Axis(1, 1, 1, 1, 1, "value")], 2.0)
    assert isinstance(padded, AffineConv)
    assert isinstance(over_positions(resolved(padded, 2, 1), (3,)), Refusal)
    part = identity().select([1, 0], 2, -2)
    assert isinstance(part, AffineConv)
    assert isinstance(over_positions(part, (3,)), Refusal)


def test_gradients_pass() -> None:
    weight = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    form = identity().convolve(weight, axes=[Axis(3, 1, 1, 1, 1)])
    assert isinstance(form, AffineConv)
    linear = over_positions(form, (4,), 2)
    assert isinstance(linear, AffineConv)
    matrix, _ = linear.weights.evaluate()
    (gradient,) = torch.autograd.grad(matrix.sum(), weight)
    assert torch.equal(gradient[:, :, 1], torch.full((2, 3), 8.0, dtype=torch.float64))
    assert torch.equal(gradient[:, :, 0], torch.full((2, 3), 6.0, dtype=torch.float64))
