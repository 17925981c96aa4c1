"""What a forward keeps in attributes for later is kept by new code, too."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

import reparam
from tests.refusals.checking import EXACT, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error


class Block(nn.Module):
    """A convolution and a norm beside another convolution: one operator, if the code may change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.skip = nn.Conv2d(4, 4, 1)

    def sum(self, x: Tensor) -> Tensor:
        total: Tensor = self.bn(self.conv(x)) + self.skip(x)
        return total


class Input(Block):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return self.sum(x).relu()


class Result(Block):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.sum(x).relu()
        return self.seen * 2


class Detached(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.sum(x)
        self.seen = {"before": [y.detach(), "kept"], "sizes": x.shape[2:]}
        return y.relu()


class Several(Block):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = (x, x.mean((2, 3)), 3)
        return self.sum(x).relu()


class WrittenTo(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.sum(x)
        self.seen = y
        return y.relu_().add(1)


class Optional(Block):
    def forward(self, x: Tensor, keep: bool = True) -> Tensor:
        if keep:
            self.seen = x
        return self.sum(x).relu()


class Inner(nn.Module):
    """A part keeps something, and its caller keeps what it finds there."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Input()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.part(x)
        self.seen = y.amax()
        return y


class Handed(Inner):
    """The caller reads what its part keeps."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.part(x)
        return y + self.part.seen


class Again(Inner):
    """A part runs twice: its last call counts."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.part(self.part(x))
        return result


class Before(Block):
    """Reads what the last call has kept."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Any = None

    def forward(self, x: Tensor) -> Tensor:
        before = x if self.seen is None else self.seen
        self.seen = x
        return self.sum(before).relu()


class Appended(Block):
    """Adds to a list."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.mean())
        return self.sum(x).relu()


class Between(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.seen = y
        result: Tensor = self.bn(y) + self.skip(x)
        return result


JOINED = [Input, Result, Detached, Several, WrittenTo, Optional, Inner, Handed]
APART = [Again, Before, Appended, Between]


def kept(model: nn.Module) -> dict[str, Any]:
    """All that modules keep, by path."""
    return {
        path: vars(module)["seen"]
        for path, module in model.named_modules()
        if "seen" in vars(module)
    }


def assert_same(fused: nn.Module, model: nn.Module) -> None:
    """The same result, and the same is kept, call after call."""
    for seed in range(3):
        x = torch.randn(2 + seed, 4, 9, 8, generator=torch.Generator().manual_seed(seed)).double()
        with torch.no_grad():
            assert relative_error(fused(x.clone()), model(x.clone())) < EXACT
        (actual, layout), (expected, other) = tree_flatten(kept(fused)), tree_flatten(kept(model))
        assert layout == other
        for value, wanted in zip(actual, expected, strict=True):
            same = isinstance(wanted, Tensor) and relative_error(value, wanted) < EXACT
            assert same or value == wanted


@pytest.mark.parametrize("kind", [*JOINED, *APART])
def test_what_is_kept_stays_the_same(kind: Callable[[], nn.Module]) -> None:
    model = ready(kind())
    fused = reparam.fuse(model)
    assert not kept(fused).keys() - kept(model).keys()
    assert_same(fused, model)
    # After calls, in which all of them keep something.
    assert_same(reparam.fuse(model), copy.deepcopy(model))


@pytest.mark.parametrize("kind", JOINED)
def test_a_module_that_keeps_something_has_new_code(kind: Callable[[], nn.Module]) -> None:
    model = ready(kind())
    fused = reparam.fuse(model)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    counts = count_operators(fused, (x,))
    assert (counts.convolutions, counts.batch_norms) == (1, 0)


@pytest.mark.parametrize("kind", [Input, Detached, Inner])
def test_copies_keep_for_themselves(kind: Callable[[], nn.Module]) -> None:
    model = ready(kind())
    fused = reparam.fuse(model)
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), reparam.fuse(fused)):
        assert_same(other, model)
    assert not kept(fused)


def test_an_option_decides_what_is_kept() -> None:
    model = ready(Optional())
    fused, x = reparam.fuse(model), torch.randn(2, 4, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(fused(x, keep=False), model(x, keep=False)) < EXACT
    assert not kept(fused)
