"""Kernels that a forward computes of weights, and puts into a layer or keeps as an attribute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.cases.checking import assert_exact
from tests.refusals.checking import EXACT, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run

C = 4


class Merging(nn.Module):
    """Three layers, of whose weights each call makes those of a fourth."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(C, 2 * C, 1), nn.Conv2d(2 * C, C, 3)
        self.skip, self.out = nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 3, padding=1)
        self.kernel: Any = None
        self.both: Any = None

    def merged(self) -> tuple[Tensor, Tensor]:
        first, second = self.first.weight.data.clone().detach(), self.second.weight.data
        kernel = F.conv2d(first.flip(2, 3).permute(1, 0, 2, 3), second, padding=2)
        kernel = kernel.flip(2, 3).permute(1, 0, 2, 3) + F.pad(self.skip.weight.data, [1, 1, 1, 1])
        bias = (second * self.first.bias.data.reshape(1, -1, 1, 1)).sum((1, 2, 3))
        return kernel, bias + self.second.bias.data + self.skip.bias.data

    def forward(self, x: Tensor) -> Tensor:
        self.out.weight.data, self.out.bias.data = self.merged()
        y: Tensor = self.out(x)
        return y


class Keeping(Merging):
    def forward(self, x: Tensor) -> Tensor:
        self.kernel, bias = self.merged()
        self.both = (self.kernel, bias)
        self.out.weight.data, self.out.bias.data = self.kernel, bias
        y: Tensor = self.out(x)
        return y


class KeepingAlone(Merging):
    def forward(self, x: Tensor) -> Tensor:
        self.kernel, bias = self.merged()
        return F.conv2d(x, self.kernel, bias, padding=1)


class OnlyOne(Merging):
    def forward(self, x: Tensor) -> Tensor:
        self.out.weight.data = self.merged()[0]
        y: Tensor = self.out(x)
        return y


class Inside(nn.Module):
    """Two of them, with a norm behind each."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([Merging(), Keeping()])
        self.norms = nn.ModuleList([nn.BatchNorm2d(C), nn.BatchNorm2d(C)])

    def forward(self, x: Tensor) -> Tensor:
        for part, norm in zip(self.body, self.norms, strict=True):
            x = torch.relu(norm(part(x)))
        return x


@pytest.mark.parametrize("kind", [Merging, Keeping, KeepingAlone, OnlyOne])
def test_what_weights_alone_determine_is_computed_once(kind: type[nn.Module]) -> None:
    model = ready(kind())
    fused = assert_exact(model, images(), total=1)
    run(model, (images(),))
    for name in ("kernel", "both"):
        expected, actual = getattr(model, name), getattr(fused, name)
        assert (actual is None) == (expected is None)
        if expected is not None:
            assert relative_error(actual, expected) <= EXACT


def test_it_joins_its_neighbours() -> None:
    model = ready(Inside())
    fused = assert_exact(model, images())
    counts = count_operators(fused, (images(),))
    assert (counts.convolutions, counts.batch_norms, counts.additions) == (2, 0, 0)


class Merged(nn.Module):
    """One of two branches, which goes as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"part": nn.ModuleDict({"it": Keeping()})})
        self.side = nn.Conv2d(C, C, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.inner["part"]["it"](x) + self.side(x)
        return total


def test_one_that_goes_as_a_whole_leaves_nothing_behind() -> None:
    assert_exact(ready(Merged()), images(), total=1)


def test_one_that_ran_before_is_fused_as_well() -> None:
    model = ready(Keeping())
    run(model, (images(),))
    assert_exact(model, images(), total=1)


class ReadsBefore(Merging):
    """What it puts into the layer comes of what an earlier call left there."""

    def forward(self, x: Tensor) -> Tensor:
        self.out.weight.data = self.out.weight.data * 0.5 + self.merged()[0]
        y: Tensor = self.out(x)
        return y


class RunsBefore(Merging):
    def forward(self, x: Tensor) -> Tensor:
        before = self.out(x)
        self.out.weight.data, self.out.bias.data = self.merged()
        y: Tensor = self.out(x)
        return y - 2 * before


class OfTheInput(Merging):
    def forward(self, x: Tensor) -> Tensor:
        self.out.weight.data = self.merged()[0] * x.mean()
        y: Tensor = self.out(x)
        return y


class KeepsItsInput(Merging):
    def forward(self, x: Tensor) -> Tensor:
        kept = 0 if self.kernel is None else self.kernel
        self.kernel = x
        y: Tensor = self.out(x)
        return y + kept


class Counts(Merging):
    def forward(self, x: Tensor) -> Tensor:
        self.kernel = self.merged()[0] if self.kernel is None else self.kernel * 2
        return F.conv2d(x, self.kernel, padding=1)


class Shared(Merging):
    """Another layer has the same weight, and runs before."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(C, C, 3, padding=1)
        self.other.weight = self.out.weight

    def forward(self, x: Tensor) -> Tensor:
        before = self.other(x)
        self.out.weight.data = self.merged()[0]
        y: Tensor = self.out(x)
        return y - 2 * before


@pytest.mark.parametrize(
    "kind", [ReadsBefore, RunsBefore, OfTheInput, KeepsItsInput, Counts, Shared]
)
def test_what_an_earlier_call_decides_stays(kind: type[nn.Module]) -> None:
    model, x = ready(kind()), images()
    assert_exact(model, x, calls=4)
    fused = reparam.fuse(model)
    for _ in range(3):
        assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
