"""Ways into a model that its code does not name, or whose effects a graph does not hold."""

from __future__ import annotations

import copy
import functools
import pickle
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reparam
from tests.refusals.checking import EXACT, images, ready
from tests.support.errors import relative_error


def apart(result: Tensor, exact: Tensor) -> float:
    """The relative difference, whether they need gradients or not."""
    return relative_error(result.detach(), exact.detach())


class Bare(nn.Module):
    """A chain and a head, and no method."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)


class Chain(Bare):
    """A method that runs a chain and a branch beside it."""

    def chain(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.conv(x)) + self.conv(x)
        return result


class OfAllChildren(Bare):
    """The option runs the first of all children."""

    def forward(self, x: Tensor, flag: bool = False) -> Tensor:
        if flag:
            return next(self.children())(x)  # type: ignore[no-any-return]
        return self.head(self.norm(self.conv(x)).relu())  # type: ignore[no-any-return]


class BySubmodule(Bare):
    """The option runs a part by a path."""

    def forward(self, x: Tensor, flag: bool = False) -> Tensor:
        if flag:
            return self.get_submodule("conv")(x)  # type: ignore[no-any-return]
        return self.head(self.norm(self.conv(x)).relu())  # type: ignore[no-any-return]


class ByProperty(Bare):
    """The option runs what a property gives."""

    @property
    def stem(self) -> nn.Module:
        return self.conv

    def forward(self, x: Tensor, flag: bool = False) -> Tensor:
        if flag:
            return self.stem(x)  # type: ignore[no-any-return]
        return self.head(self.norm(self.conv(x)).relu())  # type: ignore[no-any-return]


class ByPrivateMethod(Bare):
    """The option runs a method that names no part."""

    def _first(self, x: Tensor) -> Tensor:
        return next(self.children())(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, flag: bool = False) -> Tensor:
        if flag:
            return self._first(x)
        return self.head(self.norm(self.conv(x)).relu())  # type: ignore[no-any-return]


def stopping(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A wrapper with an option of its own."""

    @functools.wraps(method)
    def wrapper(self: Any, x: Tensor, flag: bool = False) -> Tensor:
        return self.conv(x) if flag else method(self, x)

    return wrapper


class ByWrapper(Bare):
    """What the forward's signature does not say, a wrapper around it takes."""

    @stopping
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu())  # type: ignore[no-any-return]


class ByClosure(Bare):
    """The option runs a function that holds the module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = lambda x: self.conv(x) * 1

    def forward(self, x: Tensor, flag: bool = False) -> Tensor:
        if flag:
            return self.first(x)  # type: ignore[no-any-return]
        return self.head(self.norm(self.conv(x)).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "kind", [OfAllChildren, BySubmodule, ByProperty, ByPrivateMethod, ByWrapper, ByClosure]
)
def test_a_part_that_other_code_reaches_without_its_name_stays(kind: type[nn.Module]) -> None:
    model = ready(kind())
    with torch.no_grad():
        expected = model(images()), model(images(), flag=True)
    fused = reparam.fuse(model, inplace=True)
    assert fused.reparam_report.fused
    assert relative_error(fused(images()).detach(), expected[0]) < EXACT
    assert relative_error(fused(images(), flag=True).detach(), expected[1]) < EXACT
    assert {row.place for row in fused.reparam_report.frozen} == {"conv", "norm"}
    with pytest.raises(TypeError, match="wrong"):
        fused(images(), wrong=True)


def scaled(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A wrapper that takes an argument more than its signature says."""

    @functools.wraps(method)
    def wrapper(self: Any, x: Tensor, *, scale: float = 1) -> Tensor:
        return method(self, x) * scale

    return wrapper


SAID: list[object] = []


class DoesMore(Chain):
    """Methods that return what no graph holds, take functions, are wrapped, or only speak."""

    def speak(self, word: str) -> None:
        SAID.append(word)

    def part(self) -> nn.Module:
        return self.head

    def with_part(self, x: Tensor) -> tuple[Tensor, nn.Module]:
        return self.chain(x).relu(), self.head

    def values(self, x: Tensor) -> Iterator[Tensor]:
        yield self.chain(x).relu()

    def applied(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return function(self.chain(x))

    @scaled
    def times(self, x: Tensor) -> Tensor:
        return self.chain(x).relu()

    def forward(self, x: Tensor) -> Tensor:
        self.speak("forward")
        y, head = self.with_part(x)
        (z,) = self.values(x)
        y = y + z + self.applied(lambda t: t.relu(), x) + self.times(x, scale=2)
        return head(y) + self.part()(y)  # type: ignore[no-any-return]


DOING_MORE: list[Callable[[Any, Tensor], Any]] = [
    lambda m, x: m(x),
    lambda m, x: m.with_part(x)[0],
    lambda m, x: m.part()(x.repeat(1, 2, 1, 1)),
    lambda m, x: next(m.values(x)),
    lambda m, x: m.applied(torch.sin, x),
    lambda m, x: m.times(x, scale=3),
]


def test_methods_that_do_more_than_compute_do_it_afterwards() -> None:
    model = ready(DoesMore())
    fused = reparam.fuse(model)
    assert len(fused.reparam_report.fused) >= 2
    for way in DOING_MORE:
        for other in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
            assert apart(way(other, images()), way(model, images())) < EXACT
    SAID.clear()
    fused.speak("word")
    assert SAID == ["word"]


class Plain(Chain):
    """A public method that another class calls by ``super``."""

    def features(self, x: Tensor) -> Tensor:
        return self.chain(x).relu()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.features(x))
        return result


class Overridden(Plain):
    """Its own method cannot have new code, the one behind ``super`` could."""

    def features(self, x: Tensor, times: Any = None) -> Tensor:
        return super().features(x) * (2 if times is None else times)


class Beside(nn.Module):
    """Both classes in one model."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Plain(), Overridden()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.first(x) + self.second(x)
        return result


def test_new_code_is_that_of_the_method_that_its_name_means() -> None:
    model = ready(Beside())
    fused = reparam.fuse(model)
    for way in (
        lambda m: m(images()),
        lambda m: m.first.features(images()),
        lambda m: m.second.features(images()),
        lambda m: m.second.features(images(), 3),
    ):
        assert apart(way(fused), way(model)) < EXACT


def adding_a_part(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A wrapper that runs a part."""

    @functools.wraps(method)
    def wrapper(self: Any, x: Tensor) -> Tensor:
        return method(self, x) + self.conv(x).mean()

    return wrapper


class RunsAWrapper(Plain):
    """A public method whose wrapper runs a part that the others run by new code."""

    @adding_a_part
    def other(self, x: Tensor) -> Tensor:
        return x


class RunsAProperty(Plain):
    """A public method that runs what a property gives."""

    @property
    def stem(self) -> nn.Module:
        return self.conv

    def other(self, x: Tensor) -> Tensor:
        result: Tensor = self.stem(x)
        return result


class RunsItsClass(Plain):
    """A public method that runs another as the class has it, new code or not."""

    def other(self, x: Tensor) -> Tensor:
        return type(self).chain(self, x)


@pytest.mark.parametrize("kind", [RunsAWrapper, RunsAProperty, RunsItsClass])
def test_what_the_other_methods_run_unseen_stays(kind: type[Any]) -> None:
    model = ready(kind())
    fused = reparam.fuse(model)
    assert fused.reparam_report.fused
    for way in (lambda m: m(images()), lambda m: m.features(images()), lambda m: m.other(images())):
        assert apart(way(fused), way(model)) < EXACT
    assert fused.reparam_report.frozen


class OfTheSame(Chain):
    """A method to which forward gives one value twice."""

    def features(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.norm(self.conv(x)) + self.conv(y)).relu()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.features(x, x))
        return result


class OfWhatItReads(Chain):
    """One argument of a method was computed of another, which its operator then reads alone."""

    def __init__(self) -> None:
        super().__init__()
        self.beside = nn.Conv2d(4, 8, 3)

    def features(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.norm(self.conv(x)) + y).relu() * y

    def forward(self, x: Tensor) -> Tensor:
        y = self.beside(x)
        result: Tensor = self.head(self.features(x, y)) + y[:, :4]
        return result


class OfTwoOfAList(Chain):
    """The same value twice in a list."""

    def features(self, x: Tensor, y: Tensor) -> Tensor:
        return self.of_list([x, y])

    def of_list(self, values: list[Tensor]) -> Tensor:
        return (self.norm(self.conv(values[0])) + self.conv(values[1])).relu()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.of_list([x, x]))
        return result


@pytest.mark.parametrize("kind", [OfTheSame, OfWhatItReads, OfTwoOfAList])
def test_a_method_may_get_other_values_than_forward_gave_it(kind: type[Any]) -> None:
    model = ready(kind())
    fused = reparam.fuse(model)
    assert fused.reparam_report.fused
    with torch.no_grad():
        y = model.conv(-images())
    y = y if kind is OfWhatItReads else -images()
    assert apart(fused(images()), model(images())) < EXACT
    assert apart(fused.features(images(), y), model.features(images(), y)) < EXACT


class Named(nn.Module):
    """A module under two names, one of whose parts a method of the parent runs."""

    def __init__(self) -> None:
        super().__init__()
        self.a = self.b = Plain()

    def features(self, x: Tensor) -> Tensor:
        return self.b.features(x)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.a(x)
        return result


class Shared(nn.Module):
    """Two parents of one module."""

    def __init__(self) -> None:
        super().__init__()
        part = Plain()
        self.a, self.b = nn.Sequential(part), nn.Sequential(part, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.a(x) + self.b(x)
        return result


@pytest.mark.parametrize("kind", [Named, Shared])
def test_what_stays_of_a_module_with_two_paths_is_frozen(kind: type[nn.Module]) -> None:
    fused = reparam.fuse(ready(kind()))
    assert fused.reparam_report.fused
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fused.train()
    fused(images()).square().mean().backward()
    assert [n for n, p in fused.named_parameters() if p.requires_grad and p.grad is None] == []
    assert fused.reparam_report.frozen


class RunsOne(Chain):
    """A method that keeps parts as they were."""

    def one(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.conv(x))
        return result

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.chain(x))


def test_a_train_of_the_users_own_is_what_runs() -> None:
    model = ready(RunsOne())
    calls: list[bool] = []

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        calls.append(mode)
        return self

    model.train = types.MethodType(train, model)  # type: ignore[method-assign]
    fused = reparam.fuse(model)
    assert fused.reparam_report.frozen
    fused = reparam.fuse(fused)
    calls.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it does not go into training mode
        assert not fused.train().training
    assert calls == [True]
