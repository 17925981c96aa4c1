"""Values side by side along the channels, and parts of the channels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from reparam import AffineConv, Refusal
from reparam.algebra.affine import AffineStack, identity
from tests.algebra.laws.forms import (
    Operator,
    apply,
    assert_same,
    branch_beside,
    channels,
    close,
    convolutions,
    counts,
    dtypes,
    random_tensor,
    runs,
)


@st.composite
def side_by_side(draw: Any) -> tuple[int, list[Operator]]:
    """Convolutions of one value whose results have equal sizes, and the channels of the value."""
    count, dtype, c0 = draw(counts), draw(dtypes), draw(channels)
    first = draw(convolutions(c0, draw(channels), count, dtype=dtype))
    beside = [draw(branch_beside(first, dtype=dtype)) for _ in range(draw(st.integers(1, 3)))]
    return c0, [first, *beside]


def stacked(forms: list[Any], count: int) -> AffineConv | Refusal:
    return AffineStack(tuple(forms), -1 - count).join(forms)


@given(side_by_side())
@settings(max_examples=40)
def test_branches_side_by_side(case: tuple[int, list[Operator]]) -> None:
    c0, operators = case
    count = len(operators[0].axes)
    form = stacked([operator.form() for operator in operators], count)
    assert isinstance(form, AffineConv), form

    def original(x: Tensor) -> Tensor:
        return torch.cat([operator(x) for operator in operators], -1 - count)

    assert_same(form, c0, original)


@given(counts, channels, channels, st.integers(2, 4), dtypes, st.data())
@settings(max_examples=60)
def test_branches_over_parts_of_the_channels_are_groups(
    count: int, c0: int, c1: int, parts: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    first = data.draw(convolutions(c0, c1, count, dtype=dtype))
    weights = [random_tensor(first.weight.shape, seed, dtype) for seed in range(parts - 1)]
    operators = [first, *(replace(first, weight=weight) for weight in weights)]
    total = parts * c0
    pieces = [range(start, start + c0) for start in range(0, total, c0)]
    forms = [
        operator.form(identity().select(piece, total, -1 - count))
        for operator, piece in zip(operators, pieces, strict=True)
    ]
    form = stacked(forms, count)
    assert isinstance(form, AffineConv), form
    assert form.groups == parts * operators[0].groups
    assert form.columns is None

    def original(x: Tensor) -> Tensor:
        several = zip(operators, x.chunk(parts, -1 - count), strict=True)
        return torch.cat([operator(part) for operator, part in several], -1 - count)

    assert_same(form, total, original)


@given(st.permutations(range(3)))
@settings(max_examples=6)
def test_groups_come_in_the_order_of_the_channels_that_they_read(order: list[int]) -> None:
    weights = [random_tensor((2, 2, 3, 3), seed) for seed in range(3)]
    parts = [identity().select(range(2 * at, 2 * at + 2), 6, -3) for at in order]
    forms = [part.convolve(weight) for part, weight in zip(parts, weights, strict=True)]
    form = stacked(forms, 2)
    assert isinstance(form, AffineConv if order == [0, 1, 2] else Refusal)


@given(counts, channels, channels, dtypes, st.data())
@settings(max_examples=40)
def test_a_part_of_the_channels_of_a_value(
    count: int, c0: int, c1: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    operator = data.draw(convolutions(c0, c1, count, dtype=dtype))
    indices = data.draw(st.lists(st.integers(0, c1 - 1), min_size=1, max_size=5))
    form = operator.form()
    assert isinstance(form, AffineConv)
    part = form.select(indices, c1, -1 - count)
    assert isinstance(part, AffineConv), part

    def original(x: Tensor) -> Tensor:
        return operator(x).index_select(-1 - count, torch.tensor(indices))

    if part.columns is None:
        assert_same(part, c0, original)
    else:  # a depthwise kernel goes on reading channels of its own, and only these
        read = part.columns.indices
        assert part.depthwise
        assert part.columns.total == c0
        inner = AffineConv(
            part.weights, part.axes, len(read), len(read), part.groups, part.has_bias
        )
        for x, expected in runs(original, c0, count):
            close(apply(inner, x.index_select(-1 - count, torch.tensor(read))), expected)


@given(counts, channels, channels, st.data())
@settings(max_examples=60)
def test_a_dense_kernel_takes_in_the_order_of_the_channels(
    count: int, c0: int, c1: int, data: st.DataObject
) -> None:
    operator = data.draw(convolutions(c0, c1, count))
    assume(operator.groups == 1)
    order = data.draw(st.permutations(range(c0)))
    form = operator.form(identity().select(order, c0, -1 - count))
    assert isinstance(form, AffineConv), form
    assert form.columns is None

    def original(x: Tensor) -> Tensor:
        return operator(x.index_select(-1 - count, torch.tensor(order)))

    assert_same(form, c0, original)


@given(counts, channels, st.data())
@settings(max_examples=60)
def test_parts_of_parts(count: int, c0: int, data: st.DataObject) -> None:
    first = data.draw(convolutions(c0, 6, count))
    second = data.draw(convolutions(2, 3, count, modes=("zeros",)))
    indices = data.draw(st.lists(st.integers(0, 5), min_size=2, max_size=2))
    inner = first.form()
    assert isinstance(inner, AffineConv)
    part = inner.select(indices, 6, -1 - count)
    assert isinstance(part, AffineConv)
    form = second.form(part)
    assume(isinstance(form, AffineConv) and form.columns is None)

    def original(x: Tensor) -> Tensor:
        return second(first(x).index_select(-1 - count, torch.tensor(indices)))

    assert_same(form, c0, original)


def test_branches_that_read_different_channels_do_not_add_up() -> None:
    first = identity().select([0, 1], 4, -3)
    second = identity().select([2, 3], 4, -3)
    assert isinstance(first, AffineConv)
    assert isinstance(second, AffineConv)
    refusal = first.plus(second)
    assert isinstance(refusal, Refusal)
    assert "different channels" in refusal.reason


def test_channels_that_are_not_there() -> None:
    form = identity().convolve(torch.randn(4, 3, 1, 1))
    assert isinstance(form, AffineConv)
    refusal = form.select([0], 5, -3)
    assert isinstance(refusal, Refusal)
    assert "4 channels flow into an operator that takes some of 5" in refusal.reason
