"""Scales go on where a reshape splits the channels, or joins them with other axes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import reparam
from reparam.algebra import identity
from reparam.rules.steps import UNKNOWN, Commuting, Extent
from reparam.rules.views import reshape
from tests.refusals.checking import EXACT, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sizes of a value before and after a reshape."""
    factors = draw(st.lists(st.sampled_from([1, 2, 2, 3]), min_size=1, max_size=6))

    def grouped() -> tuple[int, ...]:
        cuts = draw(st.lists(st.booleans(), min_size=len(factors), max_size=len(factors)))
        sizes = [1]
        for factor, cut in zip(factors, cuts, strict=True):
            if cut:
                sizes.append(1)
            sizes[-1] *= factor
        return tuple(sizes)

    return grouped(), grouped()


@given(reshapes(), st.data())
def test_each_entry_belongs_to_the_channel_that_is_told(
    sizes: tuple[tuple[int, ...], tuple[int, ...]], data: st.DataObject
) -> None:
    before, after = sizes
    ones = 0
    while ones < len(before) and before[-1 - ones] == 1:
        ones += 1
    asked = [data.draw(st.sampled_from([size, *_extents(size, before), UNKNOWN])) for size in after]
    step = reshape(identity("x", len(before), ones), *asked)
    assert isinstance(step, Commuting)
    step = replace(step, size=lambda axis: before[axis])
    channel = data.draw(st.integers(-len(after), -1))
    places = step.spread(channel, after[channel])
    if places is None:
        return
    belongs = torch.arange(after[channel]).view(-1, *(1,) * (-1 - channel)).expand(after)
    entries = torch.arange(before[places.axis]).view(-1, *(1,) * (-1 - places.axis))
    told = (entries // places.run % after[channel]).expand(before)
    assert torch.equal(belongs.reshape(-1), told.reshape(-1))


def _extents(size: int, sizes: tuple[int, ...]) -> list[Extent]:
    """The axes that a number may be the sizes of, one or two."""
    axes = range(-len(sizes), 0)
    several = [(axis,) for axis in axes] + [(a, b) for a in axes for b in axes if a < b]
    return [Extent(some) for some in several if prod(sizes[axis] for axis in some) == size]


def _heads(x: Tensor, y: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    return y.view(batch, 4, 6, height * width)


def _kept(x: Tensor, y: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    return y.view(batch, 24, height * width)


def _rest(x: Tensor, y: Tensor) -> Tensor:
    return y.reshape(x.shape[0], -1, x.shape[2] * x.shape[3])


def _variables(x: Tensor, y: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    return y.view(batch, 6, 4, height, width).reshape(batch * 6, 4, height, width)


RESHAPED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], nn.Module]] = {
    "heads": (_heads, nn.BatchNorm2d(4)),
    "positions in a row": (_kept, nn.BatchNorm1d(24)),
    "channels that are the rest": (_rest, nn.BatchNorm1d(24)),
    "variables in the batch": (_variables, nn.BatchNorm2d(4)),
}


class Reshaped(nn.Module):
    """A convolution, a reshape with sizes of the input, and a norm."""

    def __init__(self, how: Callable[[Tensor, Tensor], Tensor], norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.how, self.norm = nn.Conv2d(8, 24, 3, padding=1), how, norm

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.how(x, self.conv(x.relu()))).relu()
        return result


@pytest.mark.parametrize("examples", [False, True])
@pytest.mark.parametrize("name", RESHAPED)
def test_a_norm_after_a_reshape_joins_the_convolution(name: str, examples: bool) -> None:
    model, x = ready(Reshaped(*RESHAPED[name])), torch.randn(2, 8, 5, 6, dtype=torch.float64)
    fused = reparam.fuse(model, (x,) if examples else None)
    assert count_operators(fused, (x,)).batch_norms == 0
    for size in ((2, 8, 5, 6), (3, 8, 4, 7), (1, 8, 3, 3)):
        y = torch.randn(size, dtype=torch.float64)
        assert relative_error(run(fused, (y,)), run(model, (y,))) < EXACT


class Perceptron(nn.Module):
    """A linear map of whole partitions and a norm per channel, as RepMLP has (2105.01883)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(32, 32, 1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x.reshape(-1, 32, 1, 1)).reshape(-1, 2, 4, 4)
        result: Tensor = self.norm(y).relu()
        return result


def test_neighbours_share_a_channel() -> None:
    model, x = ready(Perceptron()), torch.randn(3, 2, 4, 4, dtype=torch.float64)
    fused = reparam.fuse(model)
    assert count_operators(fused, (x,)).batch_norms == 0
    assert relative_error(run(fused, (x,)), run(model, (x,))) < EXACT


class Uneven(nn.Module):
    """Five channels of a reshape do not fill the twelve of the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 12, 1), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.conv(x.relu()).reshape(-1, 5, 4)).relu()
        return result


class Mixed(nn.Module):
    """The channels of a reshape run across those of the convolution and its positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.relu())
        result: Tensor = self.norm(y.reshape(y.shape[0], y.shape[2], y.shape[1])).relu()
        return result


@pytest.mark.parametrize(("model", "shape"), [(Uneven(), (1, 3, 5)), (Mixed(), (2, 3, 4))])
def test_channels_that_a_reshape_mixes_stay(model: nn.Module, shape: tuple[int, ...]) -> None:
    model, x = ready(model), torch.randn(shape, dtype=torch.float64)
    fused = reparam.fuse(model, (x,))
    assert count_operators(fused, (x,)).batch_norms == 1
    assert relative_error(run(fused, (x,)), run(model, (x,))) < EXACT


class ByAxes(nn.Module):
    """Which axes move is what code makes of numbers of axes."""

    def __init__(self, axes: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.norm, self.linear, self.axes = nn.BatchNorm1d(8), nn.Linear(8, 8), axes

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.transpose(1, 2)).transpose(1, 2)
        axes = self.axes(y)
        result: Tensor = self.linear(torch.roll(y, (1,), axes))  # type: ignore[arg-type]
        return result


AXES: dict[str, Callable[[Tensor], object]] = {
    "computed": lambda y: y.dim() - 2,
    "chosen": lambda y: (1,) if y.dim() == 3 else (0,),
    "of the shape": lambda y: (len(y.shape) - 2,),
}


@pytest.mark.parametrize("how", AXES)
def test_numbers_of_axes_are_known(how: str) -> None:
    model, x = ready(ByAxes(AXES[how])), torch.randn(2, 5, 8, dtype=torch.float64)
    fused = reparam.fuse(model, (x,))
    assert count_operators(fused, (x,)).batch_norms == 0
    assert relative_error(run(fused, (x,)), run(model, (x,))) < EXACT


def test_numbers_of_axes_that_reach_the_channels_stay() -> None:
    model, x = ready(ByAxes(lambda y: y.dim() - 1)), torch.randn(2, 5, 8, dtype=torch.float64)
    fused = reparam.fuse(model, (x,))
    assert count_operators(fused, (x,)).batch_norms == 1
    assert relative_error(run(fused, (x,)), run(model, (x,))) < EXACT
