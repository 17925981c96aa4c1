"""One figure per law. The kernels of results, and the reasons, are what the laws return."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from generate.svg import Grid, Sign, figure, number, spoken
from reparam import AffineConv, Axis, Refusal
from reparam.algebra.affine import Affine, AffineSum, identity
from reparam.algebra.laws import stacked

_SMALL = 24.0


def sequence() -> str:
    """Two kernels one after the other, and a batch norm behind them."""
    first = _conv([[1.0], [2.0], [1.0]], 2)
    second = _conv([[-1.0, 0.0, 2.0]], 1)
    whole = _form(first.then(second))
    norm = _form(_form(identity().scale(0.5)).shift(1.0))
    folded = _form(whole.then(norm))
    strided = _conv([[1.0, 2.0, 1.0]], None, [Axis(), Axis(3, before=1, after=1)])
    return figure(
        "sequence",
        [
            [
                Grid(_taps(first), "K₁", _constant(first)),
                Sign("then"),
                Grid(_taps(second), "K₂", _constant(second)),
                Sign("="),
                Grid(_taps(whole), "K", _constant(whole)),
            ],
            [
                Grid(_taps(whole), "K", _constant(whole)),
                Sign("then"),
                Grid(_taps(norm), "batch norm", _constant(norm)),
                Sign("="),
                Grid(_taps(folded), "folded", _constant(folded)),
            ],
        ],
        said=(
            f"A column of taps {spoken(_taps(first))} and then a row of taps "
            f"{spoken(_taps(second))} is the kernel {spoken(_taps(whole))} with the constant "
            f"{_bias(whole)}. A batch norm that halves and adds one makes it "
            f"{spoken(_taps(folded))} with the constant {_bias(folded)}."
        ),
        caption="Weights multiply where taps add up; a batch norm is one tap.",
        refused=[f"3 taps padded, then 3 taps padded: {_reason(strided.then(strided))}"],
    )


def parallel() -> str:
    """Branches over one value, with their taps aligned."""
    same = Axis(3, before=1, after=1)
    three = _conv([[1.0, 0.0, -1.0], [2.0, 4.0, -2.0], [1.0, 0.0, -1.0]], 1, [same, same])
    one = _conv([[3.0]], 2)
    skip = identity().with_channels(1).with_axes(2)
    branches = [three, one, skip]
    total = _total(branches)
    wide = _line([1.0, 2.0, 3.0], Axis(3, dilation=2, before=2, after=2))
    near = _line([4.0, 5.0, 6.0], same)
    both = _form(wide.plus(near))
    names = ["conv 3×3", "conv 1×1", "x"]
    parts: list[Grid | Sign] = []
    for name, branch in zip(names, branches, strict=True):
        parts += [Grid(_aligned(branch, total), name, _constant(branch)), Sign("+")]
    return figure(
        "parallel",
        [
            [*parts[:-1], Sign("="), Grid(_taps(total), "one 3×3", _constant(total))],
            [
                Grid(_aligned(wide, both), "3 taps, dilation 2"),
                Sign("+"),
                Grid(_aligned(near, both), "3 taps, dilation 1"),
                Sign("="),
                Grid(_taps(both), "5 taps"),
            ],
        ],
        said=(
            f"A 3 by 3 kernel {spoken(_taps(three))}, a 1 by 1 kernel {spoken(_taps(one))} and the "
            f"value itself add up to {spoken(_taps(total))}: the last two land on the centre. Taps "
            f"at distance two, {spoken(_aligned(wide, both))}, and at distance one, "
            f"{spoken(_aligned(near, both))}, add up to {spoken(_taps(both))}."
        ),
        caption="Dashed: places where a branch has no tap. Taps are matched by their true offset.",
        refused=[
            f"stride 2 beside stride 1: {_reason(_line([1.0], Axis(stride=2)).plus(near))}",
            f"no padding beside padding: {_reason(_line([1.0, 1.0, 1.0], Axis(3)).plus(near))}",
        ],
    )


def identity_kernel() -> str:
    """The value itself as a kernel of several channels."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randint(-2, 3, (3, 3, 3, 3), generator=draw, dtype=torch.float64)
    same = Axis(3, before=1, after=1)
    branch = _form(identity().convolve(weight, axes=[same, same]))
    total = _form(branch.plus(identity()))
    before, after = _dense(branch), _dense(total)
    halved = _form(identity().convolve(weight, axes=[Axis(3, 2, before=1, after=1)] * 2))
    wider = _form(identity().convolve(weight.repeat(2, 1, 1, 1), axes=[same, same]))
    return figure(
        "identity",
        [
            [
                Grid(before, "K, 3 channels to 3", blocks=(3, 3), cell=_SMALL),
                Sign("+ x ="),
                Grid(
                    after,
                    "K + identity",
                    blocks=(3, 3),
                    marked=before != after,
                    cell=_SMALL,
                ),
            ]
        ],
        said=(
            "Nine blocks of 3 by 3 taps, one for each pair of an output and an input channel. "
            "Adding the value itself adds one to the centre tap of the three blocks on the "
            "diagonal, and changes nothing else."
        ),
        caption=(
            "A block is the kernel from one channel (across) to one channel (down). Framed: what "
            "the identity adds."
        ),
        refused=[
            f"stride 2: {_reason(halved.plus(identity()))}",
            f"6 channels of 3: {_reason(wider.plus(identity().with_channels(3)))}",
        ],
    )


def border() -> str:
    """Why a zero padding after a bias is refused, and what is not."""
    x = torch.tensor([[[1.0, 3.0, 2.0, 4.0]]], dtype=torch.float64)
    first = _line([2.0], Axis(), 1)
    zeros = _line([1.0, 1.0, 1.0], Axis(3, before=1, after=1))
    inside = _line([1.0, 1.0, 1.0], Axis(3))
    inner, inner_bias = first.weights.evaluate()
    outer, _ = inside.weights.evaluate()
    value = F.conv1d(x, inner, inner_bias)
    network = F.conv1d(value, outer, padding=1)
    whole = _form(first.then(inside))
    kernel, bias = whole.weights.evaluate()
    formula = F.conv1d(x, kernel, bias, padding=1)
    constant = float(inner_bias[0]) if inner_bias is not None else 0.0
    padding = Axis(before=1, after=1, mode="value")
    padded = _form(_form(first.pad([padding], constant)).then(inside))
    assert torch.equal(padded.weights.evaluate()[0], kernel)
    differs = network[0] != formula[0]
    ends = torch.tensor([[True, *[False] * 4, True]])
    arrow = Sign("→ 1 1 1 →")
    return figure(
        "border",
        [
            [
                Sign("network"),
                Grid(F.pad(value, (1, 1))[0], "2·x + 1, then zeros around it", marked=ends),
                arrow,
                Grid(network[0], "", marked=differs),
            ],
            [
                Sign("formula"),
                Grid(F.pad(value, (1, 1), value=constant)[0], "2·x + 1 everywhere", marked=ends),
                arrow,
                Grid(formula[0], "", marked=differs),
            ],
        ],
        said=(
            f"The input {spoken(x[0])} times two plus one is {spoken(value[0])}. The network "
            f"puts zeros around it and sums three neighbours: {spoken(network[0])}. One kernel "
            f"{spoken(kernel[0])} with the constant {_bias(whole)} "
            f"sees {number(constant)} out there: {spoken(formula[0])}. Both ends differ."
        ),
        caption=(
            "Outside, one kernel continues the first operator, which gives its bias there; the "
            "network sees zeros. Padded with the bias itself, both rows are the second."
        ),
        refused=[_reason(first.then(zeros))],
    )


def channels() -> str:
    """Values side by side, groups, and parts of the channels."""
    first, second = (
        _matrix([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        _matrix([[-1.0, 0.0, 1.0], [2.0, 0.0, -2.0]]),
    )
    rows = _form(stacked([first, second]))
    left = _matrix([[1.0, 2.0], [3.0, 4.0]], _form(identity().select((0, 1), 4, -3)))
    right = _matrix([[5.0, 6.0], [7.0, 8.0]], _form(identity().select((2, 3), 4, -3)))
    groups = _form(stacked([left, right]))
    part = _form(rows.select((3, 0), 4))
    strided = _form(
        identity().convolve(torch.ones(2, 3, 1, 1, dtype=torch.float64), axes=[Axis(stride=2)] * 2)
    )
    return figure(
        "channels",
        [
            [
                Grid(_dense(first), "K₁ ⋆ x"),
                Sign("beside"),
                Grid(_dense(second), "K₂ ⋆ x"),
                Sign("="),
                Grid(_dense(rows), "rows of one kernel", blocks=(2, 3)),
            ],
            [
                Grid(_dense(left), "of x₁ x₂"),
                Sign("beside"),
                Grid(_dense(right), "of x₃ x₄"),
                Sign("="),
                Grid(_dense(groups), "two groups", blocks=(2, 2)),
            ],
            [
                Grid(_dense(rows), "K", blocks=(2, 3)),
                Sign("then channels 4, 1 ="),
                Grid(_dense(part), "two rows"),
            ],
        ],
        said=(
            f"Kernels from three channels to two, {spoken(_dense(first))} and "
            f"{spoken(_dense(second))}, side by side are the rows {spoken(_dense(rows))}. Two that "
            f"read channels of their own are two groups: {spoken(_dense(groups))}. Channels 4 and "
            f"1 of the first result are the rows {spoken(_dense(part))}."
        ),
        caption="1×1 kernels; a row is an output channel, a column an input channel.",
        refused=[f"stride 2 beside stride 1: {_reason(stacked([first, strided]))}"],
    )


def scaled_sum() -> str:
    """A scale and a shift of a sum over two values."""
    first = _line([1.0, 2.0, 1.0], Axis(3, before=1, after=1), 1, base="x")
    second = _line([3.0], Axis(), base="y")
    total = first.plus(second)
    assert isinstance(total, AffineSum)
    scaled = total.scale(2.0)
    assert isinstance(scaled, AffineSum)
    shifted = scaled.shift(1.0)
    assert isinstance(shifted, AffineSum)
    one, two = shifted.terms
    return figure(
        "scaled-sum",
        [
            [
                Sign("2 · ("),
                Grid(_taps(first), "K₁ ⋆ x", _constant(first)),
                Sign("+"),
                Grid(_taps(second), "K₂ ⋆ y", _constant(second)),
                Sign(") + 1   ="),
                Grid(_taps(one), "⋆ x", _constant(one)),
                Sign("+"),
                Grid(_taps(two), "⋆ y", _constant(two)),
            ]
        ],
        said=(
            f"Two times the sum of {spoken(_taps(first))} over x with the constant {_bias(first)} "
            f"and {spoken(_taps(second))} over y, plus one, is {spoken(_taps(one))} over x with "
            f"the constant {_bias(one)} plus {spoken(_taps(two))} over y with the constant "
            f"{_bias(two)}."
        ),
        caption="The factor goes into every kernel, the constant into one.",
        refused=[
            f"a ReLU before the sum: {_kept(_Normed(relu=True), 'BatchNorm2d')}",
            f"a convolution that is also returned: {_kept(_Normed(twice=True), 'BatchNorm2d')}",
        ],
    )


def pooling() -> str:
    """An average pool as a kernel, and where it is none."""
    same = Axis(3, before=1, after=1)
    mean = _form(identity().with_channels(1).pool([same, same]))
    conv = _conv([[0.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 0.0]], None, [same, same])
    total = _form(mean.plus(conv))
    image = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    shares = 9 * F.avg_pool2d(image, 3, 1, 1)
    counted = torch.full_like(shares, 9)
    pool = nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.Conv2d(1, 1, 1))
    return figure(
        "pooling",
        [
            [
                Grid(_taps(mean), "mean of 3×3"),
                Sign("+"),
                Grid(_taps(conv), "conv 3×3"),
                Sign("="),
                Grid(_taps(total), "one 3×3"),
            ],
            [
                Sign("divided by"),
                Grid(counted[0, 0], "padding counts", cell=_SMALL),
                Sign("or"),
                Grid(
                    shares[0, 0],
                    "padding does not",
                    marked=shares[0, 0] != 9,
                    cell=_SMALL,
                ),
            ],
        ],
        said=(
            f"The mean of 3 by 3 values is the kernel {spoken(_taps(mean))}; added to "
            f"{spoken(_taps(conv))} it is {spoken(_taps(total))}. If the padding does not count, "
            f"the number to divide by is {spoken(shares[0, 0])} on an image of 4 by 4: it "
            "differs at the border."
        ),
        caption="Equal taps, as long as every position divides by the same number.",
        refused=[f"nn.AvgPool2d, then nn.Conv2d: {_kept(pool, 'AvgPool2d')}"],
    )


class _Normed(nn.Module):
    """A batch norm of a sum over two values."""

    def __init__(self, *, relu: bool = False, twice: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)
        self.norm = nn.BatchNorm2d(1)
        self.relu, self.twice = relu, twice

    def forward(self, x: Tensor, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        first = self.first(x).relu() if self.relu else self.first(x)
        total: Tensor = self.norm(first + self.second(y))
        return (total, first) if self.twice else total


FIGURES: dict[str, Callable[[], str]] = {
    "sequence": sequence,
    "parallel": parallel,
    "identity": identity_kernel,
    "border": border,
    "channels": channels,
    "scaled-sum": scaled_sum,
    "pooling": pooling,
}
"""All figures by the name that a page calls them."""


def _conv(
    taps: Sequence[Sequence[float]], bias: float | None, axes: Sequence[Axis] | None = None
) -> AffineConv:
    """A convolution over two axes, of one channel."""
    weight = torch.tensor(taps, dtype=torch.float64)[None, None]
    constant = None if bias is None else torch.tensor([bias], dtype=torch.float64)
    return _form(identity().convolve(weight, constant, axes=axes))


def _line(
    taps: Sequence[float], axis: Axis, bias: float | None = None, base: Hashable = None
) -> AffineConv:
    """A convolution over one axis, of one channel."""
    weight = torch.tensor(taps, dtype=torch.float64)[None, None]
    constant = None if bias is None else torch.tensor([bias], dtype=torch.float64)
    return _form(identity(base).convolve(weight, constant, axes=[axis]))


def _matrix(rows: Sequence[Sequence[float]], inner: AffineConv | None = None) -> AffineConv:
    """A 1×1 convolution of several channels."""
    weight = torch.tensor(rows, dtype=torch.float64)[:, :, None, None]
    return _form((inner or identity()).convolve(weight))


def _total(branches: Sequence[AffineConv]) -> AffineConv:
    total, *others = branches
    for branch in others:
        total = _form(total.plus(branch))
    return total


def _form(result: Affine | Refusal) -> AffineConv:
    """What a law gives, which it must not refuse here."""
    assert isinstance(result, AffineConv), result
    return result


def _reason(result: Affine | Refusal) -> str:
    """Why a law refuses, which it must here."""
    assert isinstance(result, Refusal), result
    return result.reason


def _kept(model: nn.Module, operator: str) -> str:
    """Why an operator of a model stays."""
    refused = reparam.plan(model.eval()).refused
    return next(row.reason for row in refused if row.operator == operator)


def _taps(form: AffineConv) -> Tensor:
    """The taps of a kernel of one channel; one axis lies across."""
    kernel, _ = form.weights.evaluate()
    taps = kernel[0, 0]
    return taps if taps.dim() == 2 else taps.reshape(1, -1)


def _aligned(form: AffineConv, total: AffineConv) -> Tensor:
    """The taps of a branch at their places in a sum; NaN where it has none."""
    own, common = form.axes or (), total.axes or ()
    places = [
        [
            (tap * axis.dilation - axis.before + whole.before) // whole.dilation
            for tap in range(axis.kernel)
        ]
        for axis, whole in zip(own, common, strict=True)
    ]
    result = torch.full([axis.kernel for axis in common], torch.nan, dtype=torch.float64)
    kernel, _ = form.weights.evaluate()
    result[torch.meshgrid(*map(torch.tensor, places), indexing="ij")] = kernel[0, 0]
    return result if result.dim() == 2 else result[None]


def _dense(form: AffineConv) -> Tensor:
    """A kernel of several channels as blocks of taps; NaN between groups."""
    kernel, _ = form.weights.evaluate()
    groups = form.groups or 1
    high, wide = kernel.shape[2:]
    rows, columns = kernel.shape[0] // groups, kernel.shape[1]
    shape = (groups * rows, groups * columns, high, wide)
    result = torch.full(shape, torch.nan, dtype=torch.float64)
    for group in range(groups):
        at, to = (
            slice(group * rows, (group + 1) * rows),
            slice(group * columns, (group + 1) * columns),
        )
        result[at, to] = kernel[at]
    return result.transpose(1, 2).reshape(shape[0] * high, shape[1] * wide)


def _bias(form: AffineConv) -> str:
    _, bias = form.weights.evaluate()
    return number(0.0 if bias is None else float(bias[0]))


def _constant(form: AffineConv) -> str:
    return f"c = {_bias(form)}"
