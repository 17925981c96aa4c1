"""Generators of random numbers, iterators and the like that a model holds are where they were."""

from __future__ import annotations

import functools
import itertools
import queue
import random
import types
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.refusals.checking import images, ready
from tests.support.errors import relative_error
from tests.support.thinning import thinned

C = 4


def numbers() -> Iterator[float]:
    while True:
        yield 1.5


class Kind(NamedTuple):
    """Something that goes on when it is used: made, used, and looked at."""

    make: Callable[[], Any]
    use: Callable[[Any], Any]
    see: Callable[[Any], Any]


def add(held: Any) -> float:
    held.count += 1
    return float(held.count)


def turn(held: Any) -> float:
    held.put(held.queue[0] + 1)
    return float(held.get())


def fill(held: Any) -> float:
    held += 1
    return float(held[0])


def filled_queue() -> Any:
    held: Any = queue.Queue()
    held.put(2.0)
    return held


KINDS = {
    "torch": Kind(
        lambda: torch.Generator().manual_seed(3),
        lambda held: torch.rand(C, 1, 1, generator=held),
        lambda held: held.get_state().tolist(),
    ),
    "numpy": Kind(
        lambda: np.random.default_rng(3),
        lambda held: held.random(),
        lambda held: str(held.bit_generator.state),
    ),
    "old numpy": Kind(
        lambda: np.random.RandomState(3),
        lambda held: float(held.rand()),
        lambda held: str(held.get_state()),
    ),
    "python": Kind(
        lambda: random.Random(3), lambda held: held.random(), lambda held: held.getstate()
    ),
    "list": Kind(lambda: iter([1.0, 2.0, 3.0] * 99), next, lambda held: held.__reduce__()[2]),
    "count": Kind(lambda: itertools.count(1.5), next, repr),
    "cycle": Kind(
        lambda: itertools.cycle([1.5, 2.5, 3.5]), next, lambda held: str(held.__reduce__()[2])
    ),
    "map": Kind(
        lambda: map(float, range(1, 999)),
        next,
        lambda held: held.__reduce__()[1][1].__reduce__()[2],
    ),
    "generator": Kind(numbers, next, lambda held: held.gi_frame.f_lasti),
    "array": Kind(lambda: np.ones(3), fill, lambda held: held.tolist()),
    "queue": Kind(filled_queue, turn, lambda held: list(held.queue)),
    "namespace": Kind(lambda: types.SimpleNamespace(count=1), add, repr),
}
UNCOPYABLE = ("generator", "queue")  # by Python's own deepcopy

PLACES: dict[str, Any] = {
    "attribute": (lambda held: held, lambda place: place),
    "list": (lambda held: [held], lambda place: place[0]),
    "tuple": (lambda held: (held, 1), lambda place: place[0]),
    "dictionary": (lambda held: {"a": held}, lambda place: place["a"]),
}


class Uses(nn.Module):
    """A scale that every call makes anew, between a layer and a pair that can be fused."""

    def __init__(self, kind: str, place: str) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)
        self.pair = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C))
        self.kind, self.get = KINDS[kind], PLACES[place][1]
        self.place = PLACES[place][0](self.kind.make())

    @property
    def held(self) -> Any:
        return self.get(self.place)

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(self.norm(self.conv(x) * self.kind.use(self.held))).relu()


@pytest.mark.parametrize(
    ("kind", "place", "around", "given"),
    thinned(product(KINDS, PLACES, ("root", "inner"), ("nothing", "inputs")), 5),
)
def test_what_goes_on_is_where_it_was(kind: str, place: str, around: str, given: str) -> None:
    inner, inputs = around == "inner", given == "inputs"
    user, x = Uses(kind, place), images()
    pair = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)
    model = ready(nn.Sequential(*pair, user) if inner else user)
    held, see = user.held, user.kind.see
    before, examples = see(held), (x,) if inputs else ()

    def is_there() -> bool:
        return user.held is held and see(held) == before

    assert len(reparam.plan(model, *examples).fused) == 1 + inner
    assert is_there()
    if kind in UNCOPYABLE:
        with pytest.raises(reparam.ReparamError, match="cannot be copied"):
            reparam.fuse(model, *examples)
        assert is_there()
        return
    fused = reparam.fuse(model, *examples)
    assert is_there()
    reparam.verify(model, fused, x)
    assert is_there()
    for _ in range(2):  # and the copy goes on as the original does
        assert relative_error(fused(x).detach(), model(x).detach()) <= 1e-9
    assert see(held) != before


def test_an_iterator_that_cannot_be_put_back_is_not_used() -> None:
    """In place there is no copy of it: neither is it used to compare."""
    user, x = Uses("generator", "attribute"), images()
    model = ready(nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), user))
    held = user.held
    fused: Any = reparam.fuse(model, x, inplace=True)
    assert len(fused.reparam_report.fused) == 2
    assert any("cannot be put back" in note for note in fused.reparam_report.notes)
    assert user.held is held
    assert held.gi_frame.f_lasti == numbers().gi_frame.f_lasti


class Counting:
    def __init__(self) -> None:
        self.count = 0

    def step(self) -> float:
        self.count += 1
        return float(self.count)


def of_python() -> tuple[Callable[[], Any], Callable[[], Any]]:
    generator = random.Random(3)
    return generator.random, generator.getstate


def of_numpy() -> tuple[Callable[[], Any], Callable[[], Any]]:
    generator = np.random.default_rng(3)
    return generator.random, lambda: str(generator.bit_generator.state)


def of_torch() -> tuple[Callable[[], Any], Callable[[], Any]]:
    generator = torch.Generator().manual_seed(3)
    draw = functools.partial(torch.rand, C, 1, 1, generator=generator)
    return draw, lambda: generator.get_state().tolist()


def of_an_object() -> tuple[Callable[[], Any], Callable[[], Any]]:
    held = Counting()
    return held.step, lambda: held.count


class Follows(nn.Module):
    """A scale that comes of a function, which alone knows what goes on."""

    def __init__(self, follow: Callable[[], Any]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)
        self.follow = follow

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x) * self.follow())
        return y.relu()


@pytest.mark.parametrize("make", [of_python, of_numpy, of_torch, of_an_object])
@pytest.mark.parametrize("inputs", [False, True], ids=["", "inputs"])
def test_what_a_method_goes_on_with_is_where_it_was(
    make: Callable[[], tuple[Callable[[], Any], Callable[[], Any]]], inputs: bool
) -> None:
    follow, see = make()
    model, x = ready(Follows(follow)), images()
    before, given = see(), (x,) if inputs else ()
    reparam.plan(model, *given)
    assert see() == before
    fused = reparam.fuse(model, *given)
    assert see() == before
    reparam.verify(model, fused, x)
    assert see() == before
    fused(x)
    assert make()[1]() == before
