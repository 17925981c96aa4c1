"""Torch's own operators, in any order: what their rules and the laws make of them is the same.

Here the meaning of a padding, a crop or a stride is not written down a second time: an operator is
a call of torch's, its form is what its rule says, and the form runs as the operator that it is
lowered to. Every mode of padding, with a crop on either side or without, comes before and behind
kernels of one tap or several, of any stride and dilation, pools, slices, scales and shifts.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from reparam.algebra import AffineConv, AffineStack, identity, lower, run_operator, unsupported
from reparam.rules import Rules
from tests.algebra.laws.forms import MODES, close, random_tensor, runs, seeds

C = 2

_CONVOLVE = (None, F.conv1d, F.conv2d)
_TRANSPOSE = (None, F.conv_transpose1d, F.conv_transpose2d)
_AVERAGE = (None, F.avg_pool1d, F.avg_pool2d)
_SIZES = st.sampled_from((1, 1, 2, 3))
_STEPS = st.sampled_from((1, 1, 2, 3))

EVEN = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@dataclass(frozen=True)
class Call:
    """A call of one of torch's functions on a value."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x, *self.arguments)

    def step(self, x: Any) -> Any:
        """What the rule of the function says; what is no form stays none."""
        rule = Rules().find(self.function)
        return rule(x, *self.arguments) if isinstance(x, AffineConv) else x


def value(calls: Sequence[Call], x: Tensor) -> Tensor:
    return reduce(lambda y, call: call(y), calls, x)


def form(calls: Sequence[Call], count: int) -> Any:
    """What several calls are, one after the other; no form if a law refuses."""
    step = reduce(lambda y, call: call.step(y), calls, identity(rank=count + 2))
    if not isinstance(step, AffineConv):
        return step
    return (step if step.axes is not None else step.with_axes(count)).with_channels(C)


@st.composite
def paddings(draw: Any, count: int) -> Call:
    """Any mode; each side of each axis is padded, cropped or left alone."""
    sides = [draw(st.integers(-2, 3)) for _ in range(2 * draw(st.integers(1, count)))]
    mode = draw(st.sampled_from(("constant", *MODES)))
    filled = draw(st.sampled_from((0, 0, 0.5))) if mode == "constant" else None
    return Call(F.pad, (sides, mode, filled))


@st.composite
def kernels(draw: Any, count: int) -> Call:
    kernel, stride, dilation, padding = (
        [draw(entry) for _ in range(count)] for entry in (_SIZES, _STEPS, _STEPS, st.integers(0, 3))
    )
    groups, seed = draw(st.sampled_from((1, C))), draw(seeds)
    weight = random_tensor((C, C // groups, *kernel), seed)
    bias = random_tensor((C,), seed + 1) if draw(st.booleans()) else None
    if draw(st.sampled_from((False, False, True))):
        extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
        shared = (stride, padding, extra, 1, dilation)
        return Call(_TRANSPOSE[count], (random_tensor((C, C, *kernel), seed), bias, *shared))
    return Call(_CONVOLVE[count], (weight, bias, stride, padding, dilation, groups))


@st.composite
def pools(draw: Any, count: int) -> Call:
    kernel, stride = draw(st.integers(1, 3)), draw(_STEPS)
    return Call(_AVERAGE[count], (kernel, stride, draw(st.integers(0, kernel // 2))))


@st.composite
def slices(draw: Any, count: int) -> Call:
    first, last, step = draw(st.integers(0, 2)), draw(st.integers(0, 2)), draw(_STEPS)
    whole = slice(None)
    entry = slice(first, -last or None, step)
    return Call(operator.getitem, ((whole, whole, entry, *(whole,) * (count - 1)),))


@st.composite
def entrywise(draw: Any, count: int) -> Call:
    entries = random_tensor((C, *(1,) * count), draw(seeds))
    return Call(draw(st.sampled_from((torch.mul, torch.add))), (entries,))


def calls(count: int) -> st.SearchStrategy[Call]:
    """Any operator over some axes."""
    small = st.one_of(pools(count), slices(count), entrywise(count))
    return st.one_of(paddings(count), paddings(count), kernels(count), kernels(count), small)


def agrees(whole: Any, count: int, original: Callable[[Tensor], Tensor]) -> bool:
    """Wherever the original runs, the operator of a form runs, too, and gives the same numbers.

    False if there is no such operator, or nothing to compare it with.
    """
    if not isinstance(whole, AffineConv) or unsupported(whole) is not None:
        return False
    module = lower(whole, *whole.weights.evaluate())
    ran = False
    for x, expected in runs(original, C, count):
        close(run_operator(module, x, whole), expected)
        ran = True
    return ran


# -- The laws -------------------------------------------------------------------------------------


def chains(count: int, longest: int = 3) -> st.SearchStrategy[list[Call]]:
    return st.lists(calls(count), min_size=1, max_size=longest)


@EVEN
@given(st.sampled_from((1, 1, 2)), st.data())
@settings(max_examples=150)
def test_any_operators_in_a_row(count: int, data: st.DataObject) -> None:
    chain = data.draw(chains(count))
    assume(agrees(form(chain, count), count, lambda x: value(chain, x)))


@st.composite
def branches(draw: Any) -> tuple[int, list[Call], list[Call]]:
    """Any chain that is a form, and a padded or cropped kernel whose result has the same size."""
    count = draw(st.sampled_from((1, 1, 2)))
    first = draw(chains(count, 2))
    whole = form(first, count)
    assume(isinstance(whole, AffineConv) and not whole.transposed)
    kernel, dilation = ([draw(entry) for _ in range(count)] for entry in (_SIZES, _STEPS))
    sides: list[int] = []
    for axis, k, d in reversed(list(zip(whole.axes, kernel, dilation, strict=True))):
        before = axis.before + draw(st.integers(-2, 2))
        sides += [before, axis.excess + d * (k - 1) - before]
    own = next((axis.mode for axis in whole.axes if axis.padded), "zeros")
    mode = draw(st.sampled_from((own, own, *MODES))).replace("zeros", "constant")
    padding = Call(F.pad, (sides, mode if mode != "value" else "constant"))
    weight, stride = random_tensor((C, C, *kernel), draw(seeds)), [a.stride for a in whole.axes]
    return count, first, [padding, Call(_CONVOLVE[count], (weight, None, stride, 0, dilation))]


@EVEN
@given(branches())
@settings(max_examples=60)
def test_any_two_branches(case: tuple[int, list[Call], list[Call]]) -> None:
    count, *both = case
    parts = [form(branch, count) for branch in both]
    assume(all(isinstance(part, AffineConv) for part in parts))

    def added(x: Tensor) -> Tensor:
        one, two = (value(branch, x) for branch in both)
        assert one.shape == two.shape, "the sum broadcasts"
        return one + two

    def side_by_side(x: Tensor) -> Tensor:
        return torch.cat([value(branch, x) for branch in both], 1)

    assume(agrees(parts[0].plus(parts[1]), count, added))
    agrees(AffineStack(tuple(parts), -1 - count).join(parts), count, side_by_side)


@pytest.mark.parametrize("mode", ["constant", *MODES])
@pytest.mark.parametrize("sides", [(-1, 1), (1, -2), (2, 0), (-1, -1), (1, 1)])
def test_a_padding_alone(mode: str, sides: tuple[int, int]) -> None:
    """Torch crops first. Only circular padding repeats something else then: that is no kernel."""
    call = Call(F.pad, (sides, mode))
    whole = form([call], 1)
    crops_and_pads = min(sides) < 0 < max(sides)
    assert agrees(whole, 1, call) == (mode != "circular" or not crops_and_pads)


def test_torch_allows_less_output_padding_than_stride_and_dilation() -> None:
    """On the lattice of a sum the dilation may be smaller than what a term was padded by."""
    dense = Call(F.conv_transpose1d, (random_tensor((C, C, 4), 0),))
    wide = Call(F.conv_transpose1d, (random_tensor((C, C, 3), 1), None, 1, 1, 1, 1, 2))
    total = form([dense], 1).plus(form([wide], 1))
    assert isinstance(total, AffineConv), total
    assert [(a.stride, a.dilation, a.output_padding) for a in total.axes] == [(1, 1, 1)]
    assert unsupported(total) is not None
