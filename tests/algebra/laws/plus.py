"""``first.plus(second)`` is the sum of two branches over one base."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from reparam import AffineConv
from reparam.algebra.affine import AffineSum, identity
from reparam.algebra.axis_composition import Axis
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
    operators,
    random_tensor,
    transposed_convolutions,
)


@st.composite
def branches(draw: Any, **options: Any) -> tuple[int, Operator, Operator]:
    """Two convolutions of equal sizes, and the channels of their input."""
    count, dtype, c0, c1 = draw(counts), draw(dtypes), draw(channels), draw(channels)
    first = draw(convolutions(c0, c1, count, dtype=dtype, **options))
    return c0, first, draw(branch_beside(first, dtype=dtype))


@given(branches())
@settings(max_examples=150)
def test_branches_of_equal_size_add_up(case: tuple[int, Operator, Operator]) -> None:
    c0, first, second = case
    form = first.form().plus(second.form())
    assert isinstance(form, AffineConv), form
    assert_same(form, c0, lambda x: first(x) + second(x))


@given(counts, channels, channels, st.data())
@settings(max_examples=100)
def test_a_sum_that_is_a_form_has_equal_sizes(
    count: int, c0: int, c1: int, data: st.DataObject
) -> None:
    first = data.draw(convolutions(c0, c1, count))
    second = data.draw(convolutions(c0, c1, count))
    form = first.form().plus(second.form())
    assume(isinstance(form, AffineConv))

    def original(x: Tensor) -> Tensor:
        one, two = first(x), second(x)
        assert one.shape == two.shape, "the sum broadcasts"
        return one + two

    assert_same(form, c0, original)


@given(branches())
@settings(max_examples=50)
def test_addition_commutes(case: tuple[int, Operator, Operator]) -> None:
    _, first, second = case
    one, two = first.form().plus(second.form()), second.form().plus(first.form())
    assert isinstance(one, AffineConv), one
    assert isinstance(two, AffineConv), two
    assert (one.axes, one.groups, one.has_bias) == (two.axes, two.groups, two.has_bias)
    close(one.weights.evaluate()[0], two.weights.evaluate()[0])


@given(branches(), st.data())
@settings(max_examples=40)
def test_composition_distributes_over_addition(
    case: tuple[int, Operator, Operator], data: st.DataObject
) -> None:
    c0, first, second = case
    c1, dtype = first.weight.shape[0], first.weight.dtype
    outer = data.draw(convolutions(c1, data.draw(channels), len(first.axes), dtype=dtype))
    whole = outer.form(first.form().plus(second.form()))
    parts = (
        outer.form(first.form()),
        Operator(outer.weight, None, outer.axes, outer.groups).form(second.form()),
    )
    assume(isinstance(whole, AffineConv) and all(isinstance(p, AffineConv) for p in parts))
    assert_same(whole, c0, lambda x: outer(first(x) + second(x)))
    assert_same(parts[0].plus(parts[1]), c0, lambda x: outer(first(x) + second(x)))


@st.composite
def centred(draw: Any, c: int, count: int) -> Operator:
    """A convolution that keeps the size of its input."""
    axes = []
    for _ in range(count):
        kernel, dilation = draw(st.sampled_from((1, 2, 3, 5))), draw(st.sampled_from((1, 2)))
        reach = dilation * (kernel - 1)
        before = draw(st.integers(0, reach))
        axes.append(Axis(kernel, 1, dilation, before, reach - before))
    return draw(operators(c, c, axes))


@given(channels, counts, st.data())
@settings(max_examples=75)
def test_a_residual_is_one_more_tap(c: int, count: int, data: st.DataObject) -> None:
    operator = data.draw(centred(c, count))
    form = identity().plus(operator.form())
    assert isinstance(form, AffineConv), form
    assert_same(form, c, lambda x: x + operator(x))


@given(channels, counts, st.data())
@settings(max_examples=50)
def test_a_branch_may_be_subtracted(c: int, count: int, data: st.DataObject) -> None:
    first, second = data.draw(centred(c, count)), data.draw(centred(c, count))
    form = first.form().plus(second.form().scale(-1))
    assert isinstance(form, AffineConv), form
    assert_same(form, c, lambda x: first(x) - second(x))


def test_a_small_kernel_lies_on_the_lattice_of_a_dilated_one() -> None:
    """3×3 of dilation 6 plus 1×1 stays 3×3; plus 3×3 of dilation 4 is 7×7 of dilation 2."""

    def branch(kernel: int, dilation: int) -> AffineConv:
        side = dilation * (kernel - 1) // 2
        axes = (Axis(kernel, 1, dilation, side, side),) * 2
        return Operator(random_tensor((2, 2, kernel, kernel), dilation), None, axes).form()

    wide = branch(3, 6)
    assert [(a.kernel, a.dilation) for a in wide.plus(branch(1, 1)).axes] == [(3, 6)] * 2
    assert [(a.kernel, a.dilation) for a in wide.plus(branch(3, 4)).axes] == [(7, 2)] * 2


def test_a_sum_keeps_the_groups_that_both_branches_have() -> None:
    axes = (Axis(3, 1, 1, 1, 1),)
    six, four = (
        Operator(random_tensor((12, 12 // groups, 3), groups), None, axes, groups).form()
        for groups in (6, 4)
    )
    assert six.plus(four).groups == 2
    assert six.plus(identity()).groups == 6


def test_branches_over_different_values_are_a_sum_of_forms() -> None:
    one, two = identity("one").scale(2.0), identity("two").scale(3.0)
    total = one.plus(two)
    assert isinstance(total, AffineSum)
    again = total.plus(identity("one"))
    assert [term.base for term in again.terms] == ["one", "two"]
    factors = [term.with_channels(1).weights.evaluate()[0].item() for term in again.terms]
    assert factors == [3, 3]


@given(channels, counts, st.data())
@settings(max_examples=100)
def test_transposed_branches_add_up(c0: int, count: int, data: st.DataObject) -> None:
    first = data.draw(transposed_convolutions(c0, data.draw(channels), count))
    second = data.draw(branch_beside(first, dtype=torch.float64))
    form = first.form().plus(second.form())
    assert isinstance(form, AffineConv), form
    assert_same(form, c0, lambda x: first(x) + second(x))


@given(channels, st.data())
@settings(max_examples=30)
def test_linear_branches_add_up(c0: int, data: st.DataObject) -> None:
    c1 = data.draw(channels)
    first, second = data.draw(operators(c0, c1, [])), data.draw(operators(c0, c1, []))
    form = first.form().plus(second.form())
    assert isinstance(form, AffineConv), form
    x = random_tensor((2, 3, c0), 0)
    close(apply(form, x), first(x) + second(x))
