"""``inner.then(outer)`` is the sequence, whatever the size of the input."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from reparam import AffineConv, Refusal
from reparam.algebra.affine import identity
from reparam.algebra.axis_composition import Axis
from tests.algebra.laws.forms import (
    MODES,
    Operator,
    apply,
    assert_same,
    axis,
    channels,
    close,
    computed,
    convolutions,
    counts,
    dtypes,
    operators,
    random_tensor,
    runs,
    seeds,
)


@st.composite
def sequences(draw: Any, length: int = 2, **options: Any) -> list[Operator]:
    """Convolutions that follow each other."""
    count, dtype = draw(counts), draw(dtypes)
    widths = [draw(channels) for _ in range(length + 1)]
    return [draw(convolutions(a, b, count, dtype=dtype, **options)) for a, b in pairwise(widths)]


def composed(*stages: Operator) -> AffineConv | Refusal:
    form: Any = stages[0].form()
    for stage in stages[1:]:
        form = stage.form(form) if isinstance(form, AffineConv) else form
    return form


def in_channels(operator: Operator) -> int:
    return operator.weight.shape[1] * operator.groups


@given(sequences())
@settings(max_examples=150)
def test_convolutions_compose(stages: list[Operator]) -> None:
    inner, outer = stages
    form = composed(inner, outer)
    assume(isinstance(form, AffineConv))
    assert_same(form, in_channels(inner), lambda x: outer(inner(x)))


@given(sequences(length=3, modes=("zeros",)))
@settings(max_examples=40)
def test_three_convolutions_compose(stages: list[Operator]) -> None:
    one, two, three = stages
    form = composed(one, two, three)
    assume(isinstance(form, AffineConv))
    assert_same(form, in_channels(one), lambda x: three(two(one(x))))


@st.composite
def unpadded_outer(draw: Any) -> list[Operator]:
    """Case 1 of the law: the outer kernel stays inside, but may crop."""
    inner, outer = draw(sequences())
    axes = tuple(replace(a, before=min(a.before, 0), after=min(a.after, 0)) for a in outer.axes)
    return [inner, replace(outer, axes=tuple(replace(a, mode="zeros") for a in axes))]


@given(unpadded_outer())
@settings(max_examples=100)
def test_an_unpadded_kernel_composes_with_anything(stages: list[Operator]) -> None:
    inner, outer = stages
    form = composed(inner, outer)
    assert isinstance(form, AffineConv), form
    assert_same(form, in_channels(inner), lambda x: outer(inner(x)))


@st.composite
def full_padding(draw: Any) -> list[Operator]:
    """Case 2: bias-free, and the inner formula gives zero wherever the outer kernel pads."""
    inner, outer = draw(sequences(modes=("zeros",)))
    axes = tuple(
        replace(
            a, before=max(a.reach - a.stride + 1, 0) + a.before % 3, after=a.reach + a.after % 3
        )
        for a in inner.axes
    )
    return [replace(inner, axes=axes, bias=None), outer]


@given(full_padding())
@settings(max_examples=100)
def test_zero_padding_composes_where_the_inner_formula_is_zero(stages: list[Operator]) -> None:
    inner, outer = stages
    form = composed(inner, outer)
    assert isinstance(form, AffineConv), form
    assert_same(form, in_channels(inner), lambda x: outer(inner(x)))


@given(counts, channels, channels, channels, st.sampled_from(MODES), st.data())
@settings(max_examples=75)
def test_other_padding_composes_after_a_pointwise_kernel(
    count: int, c0: int, c1: int, c2: int, mode: str, data: st.DataObject
) -> None:
    inner = data.draw(operators(c0, c1, [Axis()] * count, bias=True))
    outer = data.draw(convolutions(c1, c2, count, modes=(mode,)))
    form = composed(inner, outer)
    assert isinstance(form, AffineConv), form
    assert_same(form, c0, lambda x: outer(inner(x)))


@given(channels, channels, channels, st.data())
@settings(max_examples=50)
def test_padding_with_the_folded_bias_composes(
    c0: int, c1: int, c2: int, data: st.DataObject
) -> None:
    stride = data.draw(st.sampled_from((1, 2)))
    before, after = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 2))
    inner = data.draw(
        operators(c0, c1, [Axis(1, stride, 1, before, after), Axis(1, stride)], bias=True)
    )
    sides = [Axis(before=1, after=2, mode="value"), Axis(before=2, mode="value")]
    outer = data.draw(operators(c1, c2, [Axis(3, 2), Axis(2)]))
    padded = inner.form().pad(sides, inner.bias)
    assert isinstance(padded, AffineConv), padded

    def original(x: Tensor) -> Tensor:
        constant = inner.bias.view(-1, 1, 1)
        y = torch.nn.functional.pad(inner(x) - constant, (2, 0, 1, 2)) + constant
        return outer(y)

    form = outer.form(padded)
    assert isinstance(form, AffineConv), form
    assert_same(form, c0, original)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("units", "accepted"), [(0, True), (3, True), (6, False), (-6, False)])
def test_the_padded_bias_may_be_rounded(dtype: torch.dtype, units: int, accepted: bool) -> None:
    """By four units in the last place of the weights' type, in every channel."""
    bias = torch.tensor([1.0, 1.5, -1.0], dtype=dtype)
    inner = Operator(random_tensor((3, 2, 1), 0, dtype), bias, (Axis(),))
    value = bias.double().clone()
    value[0] += units * torch.finfo(dtype).eps
    padded = inner.form().pad([Axis(before=1, after=1, mode="value")], value)
    assert isinstance(padded, AffineConv) is accepted


@given(sequences(modes=("zeros",), stride=1), st.data())
@settings(max_examples=50)
def test_a_refused_border_would_differ(stages: list[Operator], data: st.DataObject) -> None:
    """The law does not refuse too much: what it calls different at the border, is."""
    inner, outer = stages
    dense = tuple(replace(a, dilation=1) for a in outer.axes)  # no tap may jump over the border
    outer = replace(outer, axes=dense)
    refusal = composed(inner, outer)
    assume(isinstance(refusal, Refusal))
    assert "border" in str(refusal) or "outside" in str(refusal), refusal
    inside = composed(
        inner, replace(outer, axes=tuple(replace(a, before=0, after=0) for a in dense))
    )
    assert isinstance(inside, AffineConv), inside
    axes = tuple(
        replace(a, before=a.before + o.before, after=a.after + o.after)
        for a, o in zip(inside.axes, outer.axes, strict=True)
    )
    naive = replace(inside, axes=axes)
    cases = list(runs(lambda x: outer(inner(x)), in_channels(inner), len(axes)))
    assume(cases)
    value = computed(naive)
    assert max(float((value(x) - expected).abs().max()) for x, expected in cases) > 1e-6


@given(sequences(length=3))
@settings(max_examples=75)
def test_composition_is_associative(stages: list[Operator]) -> None:
    one, two, three = (stage.form() for stage in stages)
    first, last = one.then(two), two.then(three)
    assume(isinstance(first, AffineConv) and isinstance(last, AffineConv))
    left, right = first.then(three), one.then(last)
    assume(isinstance(left, AffineConv) and isinstance(right, AffineConv))
    assert (left.axes, left.groups, left.has_bias) == (right.axes, right.groups, right.has_bias)
    for a, b in zip(left.weights.evaluate(), right.weights.evaluate(), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            close(a, b)


@given(counts, channels, channels, st.data())
@settings(max_examples=50)
def test_the_identity_is_neutral(count: int, c0: int, c1: int, data: st.DataObject) -> None:
    operator = data.draw(convolutions(c0, c1, count))
    form = operator.form()
    assert form.then(identity()) is form
    assert_same(identity().then(form), c0, operator)


@given(st.lists(channels, min_size=3, max_size=5), dtypes, seeds)
@settings(max_examples=50)
def test_linear_layers_compose(widths: list[int], dtype: torch.dtype, seed: int) -> None:
    layers = [
        Operator(random_tensor((b, a), seed + i, dtype), random_tensor((b,), seed - i, dtype), ())
        for i, (a, b) in enumerate(pairwise(widths))
    ]
    form = composed(*layers)
    assert isinstance(form, AffineConv), form
    x = random_tensor((2, 3, widths[0]), seed)
    expected = x
    for layer in layers:
        expected = layer(expected)
    close(apply(form, x), expected)


@given(counts, st.data())
@settings(max_examples=50)
def test_depthwise_kernels_stay_depthwise(count: int, data: st.DataObject) -> None:
    """A dense copy of a wide depthwise kernel would not fit into memory."""
    axes = [data.draw(axis()) for _ in range(count)]
    wide = 512
    inner = Operator(
        random_tensor((wide, 1, *(a.kernel for a in axes)), 0), None, tuple(axes), wide
    )
    outer = Operator(random_tensor((wide, 1, *(1,) * count), 1), None, (Axis(),) * count, wide)
    form = composed(inner, outer)
    assert isinstance(form, AffineConv), form
    assert form.depthwise
    assert form.weights.evaluate()[0].numel() == inner.weight.numel()
