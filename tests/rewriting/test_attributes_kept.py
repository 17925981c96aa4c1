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
from tests.refusals.checking import EXACT, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error

C = 4


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


class Gated(nn.Module):
    """A gate that keeps a loss, which the code around it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.point(x.mean((2, 3), keepdim=True)).sigmoid()
        self.loss = weight.pow(2).mean()
        return x * weight


def _pair() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C))


class ReadsOfAPart(nn.Module):
    """Reads an attribute of a part, between pairs that have nothing to do with it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = _pair(), Gated(), _pair()

    def forward(self, x: Tensor) -> Any:
        return self.last(self.gate(self.first(x))), self.gate.loss


class AddsInItsCode(ReadsOfAPart):
    """The same with branches in the code that reads the attribute."""

    def forward(self, x: Tensor) -> Any:
        x = self.first(x) + self.last(x)
        return self.gate(x), self.gate.loss


class KeepsWhatItReturns(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.conv(x)
        return self.kept.relu()


class ScalesWhatAPartKeeps(nn.Module):
    """A norm of what a part has kept: the pair lies in the code of both."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.norm, self.last = KeepsWhatItReturns(), nn.BatchNorm2d(C), _pair()

    def forward(self, x: Tensor) -> Any:
        return self.last(self.part(x)), self.norm(self.part.kept)


@pytest.mark.parametrize("with_inputs", [False, True])
@pytest.mark.parametrize(
    ("kind", "norms"), [(ReadsOfAPart, 0), (AddsInItsCode, 2), (ScalesWhatAPartKeeps, 1)]
)
def test_what_a_part_keeps_for_the_code_around_it(
    kind: type[nn.Module], norms: int, with_inputs: bool
) -> None:
    """Found by a reviewer: one such attribute kept every pair of the network apart."""
    model, x = ready(kind()), images()
    fused = reparam.fuse(model, x if with_inputs else None)
    for _ in range(2):
        with torch.no_grad():
            result, expected = fused(x), model(x)
        for mine, original in zip(result, expected, strict=True):
            assert relative_error(mine, original) <= EXACT
        for path, part in model.named_modules():
            for name in ("loss", "kept"):
                if name in vars(part):
                    kept = vars(fused.get_submodule(path))[name]
                    assert relative_error(kept, vars(part)[name]) <= EXACT
    left = [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(left) <= norms, fused.reparam_report
