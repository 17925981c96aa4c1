"""What rules are written with: scale, shift, normalize, pool, pad, and the transposed laws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam import AffineConv
from reparam.algebra.affine import identity
from reparam.algebra.axis_composition import Axis
from reparam.algebra.lowering import explicit_padding, lower, take_after, unsupported
from tests.algebra.laws.forms import (
    MODES,
    Operator,
    assert_same,
    axis,
    channels,
    close,
    convolutions,
    counts,
    dtypes,
    operators,
    random_tensor,
    resolved,
    runs,
    seeds,
    transposed_convolutions,
)

POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def column(vector: Tensor, count: int) -> Tensor:
    """One entry per channel, as a user writes it."""
    return vector.double().view(-1, *(1,) * count)


@st.composite
def any_convolution(draw: Any) -> tuple[int, Operator]:
    """A convolution or a transposed one, and the channels of its input."""
    c0, count = draw(channels), draw(counts)
    kind = draw(st.sampled_from((convolutions, transposed_convolutions)))
    return c0, draw(kind(c0, draw(channels), count))


@given(any_convolution(), dtypes, seeds)
@settings(max_examples=75)
def test_scale_and_shift(case: tuple[int, Operator], dtype: torch.dtype, seed: int) -> None:
    c0, operator = case
    form = operator.form()
    factor = random_tensor((form.out_channels,), seed, dtype)
    constant = random_tensor((form.out_channels,), seed + 1, dtype)
    operator = Operator(
        operator.weight.to(dtype), None, operator.axes, operator.groups, operator.transposed
    )
    form = operator.form().scale(factor).shift(constant)
    assert isinstance(form, AffineConv), form
    count = len(operator.axes)
    assert_same(form, c0, lambda x: operator(x) * column(factor, count) + column(constant, count))


@given(any_convolution(), st.floats(-3, 3), st.floats(-3, 3))
@settings(max_examples=50)
def test_scale_and_shift_by_numbers(
    case: tuple[int, Operator], factor: float, constant: float
) -> None:
    c0, operator = case
    form = operator.form().scale(factor).shift(constant)
    assert isinstance(form, AffineConv), form
    assert_same(form, c0, lambda x: operator(x) * factor + constant)


@given(any_convolution(), seeds, st.booleans(), st.booleans())
@settings(max_examples=75)
def test_normalize(case: tuple[int, Operator], seed: int, weighted: bool, shifted: bool) -> None:
    c0, operator = case
    c1 = operator.form().out_channels
    mean, variance = random_tensor((c1,), seed), random_tensor((c1,), seed + 1).square()
    weight = random_tensor((c1,), seed + 2) if weighted else None
    bias = random_tensor((c1,), seed + 3) if shifted else None
    form = operator.form().normalize(mean, variance, weight, bias, 1e-3)
    assert isinstance(form, AffineConv), form
    assert_same(
        form, c0, lambda x: F.batch_norm(operator(x), mean, variance, weight, bias, eps=1e-3)
    )


def test_a_norm_without_a_scale_gives_its_type() -> None:
    """Nothing else in the operator of a pool and such a norm has one."""
    mean, variance = torch.randn(3), torch.rand(3) + 0.5
    pooled = identity().pool([Axis(2), Axis(2)])
    assert isinstance(pooled, AffineConv)
    form = resolved(pooled.normalize(mean, variance, None, None, 1e-5), 3, 2)
    module: Any = lower(form, *form.weights.evaluate())
    take_after(module, form)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    x = torch.randn(2, 3, 5, 4)
    expected = F.batch_norm(F.avg_pool2d(x, 2, 1), mean, variance)
    torch.testing.assert_close(module(x), expected)


@given(channels, counts, seeds, st.data())
@settings(max_examples=50)
def test_scale_before_a_convolution(c: int, count: int, seed: int, data: st.DataObject) -> None:
    operator, factor = data.draw(convolutions(c, 4, count)), random_tensor((c,), seed)
    form = operator.form(identity().scale(factor))
    assert isinstance(form, AffineConv), form
    assert_same(form, c, lambda x: operator(x * column(factor, count)))


@given(channels, counts, seeds, st.data())
@settings(max_examples=50)
def test_shift_before_an_unpadded_convolution(
    c: int, count: int, seed: int, data: st.DataObject
) -> None:
    axes = [Axis(data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))) for _ in range(count)]
    operator, constant = data.draw(operators(c, 4, axes)), random_tensor((c,), seed)
    form = operator.form(identity().shift(constant))
    assert isinstance(form, AffineConv), form
    assert_same(form, c, lambda x: operator(x + column(constant, count)))


@st.composite
def pools(draw: Any, count: int) -> tuple[list[Axis], Any]:
    """Axes of an average pool, and the pool as torch computes it."""
    axes = []
    for _ in range(count):
        kernel, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        side = draw(st.integers(0, kernel // 2))
        axes.append(Axis(kernel, stride, 1, side, side))
    sizes = [[getattr(a, name) for a in axes] for name in ("kernel", "stride", "before")]
    return axes, lambda x: POOLS[count - 1](x, *sizes, count_include_pad=True)


@given(channels, counts, st.data())
@settings(max_examples=50)
def test_pool(c: int, count: int, data: st.DataObject) -> None:
    axes, pool = data.draw(pools(count))
    assert_same(resolved(identity().pool(axes), c, count), c, pool)


@given(channels, counts, st.data())
@settings(max_examples=75)
def test_pool_around_a_convolution(c: int, count: int, data: st.DataObject) -> None:
    axes, pool = data.draw(pools(count))
    operator = data.draw(convolutions(c, 3, count))
    after, before = operator.form().pool(axes), operator.form(identity().pool(axes))
    assume(isinstance(after, AffineConv) or isinstance(before, AffineConv))
    if isinstance(after, AffineConv):
        assert_same(after, c, lambda x: pool(operator(x)))
    if isinstance(before, AffineConv):
        assert_same(before, c, lambda x: operator(pool(x)))


@given(channels, counts, st.sampled_from(("zeros", *MODES)), st.data())
@settings(max_examples=75)
def test_pad_before_an_unpadded_convolution(
    c: int, count: int, mode: str, data: st.DataObject
) -> None:
    sides = [data.draw(axis(mode=mode, kernel=1, stride=1)) for _ in range(count)]
    kernels = [Axis(data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))) for _ in sides]
    operator = data.draw(operators(c, 3, kernels))
    pads = [side for a in reversed(sides) for side in (a.before, a.after)]
    outward, inward = [max(p, 0) for p in pads], [min(p, 0) for p in pads]
    name = "constant" if mode == "zeros" else mode

    def original(x: Tensor) -> Tensor:
        return operator(F.pad(F.pad(x, outward, mode=name) if any(outward) else x, inward))

    form = operator.form(identity().pad(sides))
    assert isinstance(form, AffineConv), form
    assert_same(form, c, original)


@given(channels, counts, st.data())
@settings(max_examples=75)
def test_pointwise_kernels_around_a_transposed_one(
    c0: int, count: int, data: st.DataObject
) -> None:
    c1, c2, c3 = (data.draw(channels) for _ in range(3))
    first = data.draw(operators(c0, c1, [Axis()] * count, bias=False))
    second = data.draw(transposed_convolutions(c1, c2, count))
    third = data.draw(operators(c2, c3, [Axis()] * count))
    form = third.form(second.form(first.form()))
    assert isinstance(form, AffineConv), form
    assert_same(form, c0, lambda x: third(second(first(x))))


@given(channels, channels, counts, st.data())
@settings(max_examples=75)
def test_a_form_is_a_torch_module(c0: int, c1: int, count: int, data: st.DataObject) -> None:
    """Whatever `unsupported` lets pass, a module and explicit padding compute."""
    operator = data.draw(
        st.one_of(convolutions(c0, c1, count), transposed_convolutions(c0, c1, count))
    )
    form = operator.form()
    assert unsupported(form) is None
    module = lower(form, *form.weights.evaluate())
    mode = next((a.mode for a in form.axes if a.padded), "zeros")
    name = "constant" if mode == "zeros" else mode
    for x, expected in runs(operator, c0, count):
        for sides in explicit_padding(form):
            x = F.pad(x, sides, mode=name if max(sides) > 0 else "constant")
        close(module(x), expected)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@given(st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=20)
def test_padding_same_is_the_padding_per_side(kernel: int, dilation: int) -> None:
    module = nn.Conv1d(2, 3, kernel, dilation=dilation, padding="same", dtype=torch.float64)
    reach = dilation * (kernel - 1)
    axes = (Axis(kernel, 1, dilation, reach // 2, reach - reach // 2),)
    operator = Operator(module.weight.detach(), module.bias.detach(), axes)
    with torch.no_grad():
        assert_same(operator.form(), 2, module)
