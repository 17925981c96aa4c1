"""Parts to which their caller gives one value as several arguments."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

import reparam
from reparam import ReparamError
from tests.models.parts import Residual
from tests.refusals.checking import EXACT, images, ready
from tests.support.errors import relative_error


class Sum(nn.Module):
    """Two convolutions, of two arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.a(x) + self.b(y)).relu()


class SumOfPair(Sum):
    def forward(self, pair: list[Tensor]) -> Tensor:  # type: ignore[override]
        return (self.a(pair[0]) + self.b(pair[1])).relu()


class Twice(nn.Module):
    """A caller that gives one value twice."""

    def __init__(self, part: nn.Module, how: str) -> None:
        super().__init__()
        self.part, self.how = part, how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "listed":
            return self.part([x, x])
        if self.how == "by name":
            return self.part(y=x, x=x)
        return self.part(x, x)


class Pair(nn.Module):
    """Another caller of the part, which gives it two values."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.part = model.get_submodule("part")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        result: Tensor = self.part(x, y)
        return result


CASES = {"two": Sum, "by name": Sum, "listed": SumOfPair}


def alone(model: nn.Module, how: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The part of a model, called by itself with two values."""
    part = model.get_submodule("part")
    return (lambda x, y: part([x, y])) if how == "listed" else part


@torch.no_grad()
@pytest.mark.parametrize("how", CASES)
def test_a_part_called_alone_with_two_values_says_what_it_was_fused_for(how: str) -> None:
    model = ready(Twice(CASES[how](), how))
    x = images()
    fused = reparam.fuse(model)
    assert len(fused.reparam_report.fused) == 1
    assert relative_error(fused(x), model(x)) < EXACT
    assert relative_error(alone(fused, how)(x, x.clone()), model(x)) < EXACT
    with pytest.raises(ReparamError, match="part was fused for a caller that gives"):
        alone(fused, how)(x, -x)


@torch.no_grad()
def test_what_it_was_fused_for_is_checked_in_whatever_is_made_of_it() -> None:
    model = ready(Twice(Sum(), "two"))
    x = images()
    fused = reparam.fuse(model)
    for part in (Pair(fused), fx.symbolic_trace(Pair(fused)), Pair(reparam.fuse(fused))):
        assert relative_error(part(x, x), model(x)) < EXACT
        with pytest.raises(ReparamError, match="part was fused for"):
            part(x, -x)
    exported = torch.export.export(copy.deepcopy(fused), (x,)).module()
    assert relative_error(exported(x), model(x)) < EXACT


class Sometimes(nn.Module):
    """A caller that gives one value twice, or two values if it is asked to."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor, factor: float | None = None) -> Tensor:
        y = x if factor is None else x * factor
        result: Tensor = self.part(x, y)
        return result


class Chain(Sum):
    """Reads one of two arguments alone."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.b(self.a(y)).relu()  # type: ignore[no-any-return]


@torch.no_grad()
@pytest.mark.parametrize("kind", [Sum, Chain])
def test_a_caller_with_options_may_give_two_values(kind: Callable[[], nn.Module]) -> None:
    model = ready(Sometimes(kind()))
    x = images()
    fused = reparam.fuse(model)
    assert fused.reparam_report.fused
    assert relative_error(fused(x), model(x)) < EXACT
    assert relative_error(fused(x, -0.5), model(x, -0.5)) < EXACT


class ScalesItsPart(nn.Module):
    """The operator belongs into the code of a part, and what scales it is in the code around."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Residual(nn.Conv2d(4, 4, 3, padding=1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scaled: Tensor = self.part(y) * self.part.part.weight.mean()
        return scaled


class WithOption(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = ScalesItsPart()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x.relu()
        result: Tensor = self.part(x, x)
        return result


def test_a_part_with_new_code_is_run_by_new_code_alone() -> None:
    """Random network 740799: what the part does already was done again with an option."""
    model, x = ready(WithOption()), images()
    fused = reparam.fuse(model)
    with torch.no_grad():
        expected = model(x)
        assert relative_error(fused(x), expected) <= EXACT
        assert relative_error(fused(x, mask=x), expected) <= EXACT
        assert relative_error(fused.part(x, 2 * x), model.part(x, 2 * x)) <= EXACT
        assert relative_error(fused.part.part(x), model.part.part(x)) <= EXACT
    assert fused.reparam_report.fused
