"""New code runs for arguments like those that were traced, and the old code for all others."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from torch import Tensor, nn

import reparam
from tests.refusals.checking import EXACT, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run


class Pair(NamedTuple):
    first: int
    second: int


class Level(enum.IntEnum):
    LOW = 1


def kind_of(option: Any) -> int:
    """Tells values apart that are equal."""
    return len(repr(option))


class Optional(nn.Module):
    """Two branches that become one operator, and a factor that follows from an option."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)


class OfNumber(Optional):
    def forward(self, x: Tensor, option: Any = 1) -> Tensor:
        return (self.a(x) + self.b(x)).relu() * kind_of(option)


class OfPair(Optional):
    def forward(self, x: Tensor, option: Any = (1, 1)) -> Tensor:
        return (self.a(x) + self.b(x)).relu() * kind_of(option)


class OfDictionary(Optional):
    def forward(self, x: Tensor, option: Any = {"a": 1}) -> Tensor:  # noqa: B006
        return (self.a(x) + self.b(x)).relu() * kind_of(option["a"])


EQUAL: dict[Callable[[], nn.Module], list[Any]] = {
    OfNumber: [True, 1.0, Level.LOW],
    OfPair: [(True, 1), (1, 1.0), (Level.LOW, 1), Pair(1, 1)],
    OfDictionary: [{"a": True}, {"a": 1.0}],
}


@pytest.mark.parametrize("kind", EQUAL)
def test_what_equals_the_traced_argument_is_not_the_same(kind: Callable[[], nn.Module]) -> None:
    model, x = ready(kind()), images()
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).convolutions == 1
    for option in EQUAL[kind]:
        assert relative_error(run(fused, (x, option)), run(model, (x, option))) <= EXACT


class OfEntry(Optional):
    """Asks what one of the values is that it is given in a container."""

    def forward(self, values: Any) -> Tensor:
        x = values[0]
        if not isinstance(x, Tensor):
            x = x["image"]
        return (self.a(x) + self.b(x)).relu()


def test_a_container_of_tensors_runs_the_new_code() -> None:
    model, x = ready(OfEntry()), images()
    fused = reparam.fuse(model)
    for values in ([x], (x, None), x[None], [{"image": x}]):
        assert relative_error(run(fused, (values,)), run(model, (values,))) < EXACT
    assert count_operators(fused, ([x],)).convolutions == 1
    assert count_operators(fused, (x[None],)).convolutions == 1
    assert count_operators(fused, ([{"image": x}],)).convolutions == 2
