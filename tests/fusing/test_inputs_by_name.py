"""Example inputs are given as a model is called: by name, in containers, with flags among them."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict, UserDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import reparam
from reparam import ReparamError
from tests.refusals.checking import EXACT, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error

X, MASK = images(), torch.rand(4, 5, 6, dtype=torch.float64)


@dataclass(frozen=True)
class Batch:
    """What a data loader gives."""

    image: Tensor
    mask: Tensor | None = None
    names: tuple[str, ...] = ()


class Encoding(UserDict[str, Any]):
    """A mapping that is no dictionary."""


class Block(nn.Module):
    """A convolution and a batch norm, around which code asks what it got."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def run(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x) * 2)


class OnlyNames(Block):
    def forward(self, *, values: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.run(values) if mask is None else self.run(values) * mask


class Scaled(Block):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.run(x) * scale


class SomeNames(Block):
    def forward(self, x: Tensor, first: Any = None, second: Any = None, *, last: Any = None) -> Any:
        y = self.run(x)
        if first is not None:
            y = y + first
        if second is not None:
            y = y * second
        return y if last is None else y - last


class AnyNames(Block):
    def forward(self, x: Tensor, **others: Any) -> Tensor:
        y = self.run(x)
        for name in sorted(others):
            y = y * others[name]
        return y


class Flagged(Block):
    def forward(self, x: Tensor, flag: bool = False, how: str = "relu") -> Any:
        y = getattr(self.run(x), how)()
        return {"y": y} if flag else y


class Required(Block):
    def forward(self, x: Tensor, mode: str, size: tuple[int, int]) -> Tensor:
        return nn.functional.interpolate(self.run(x), size=size, mode=mode)


class Steps(Block):
    """A number that decides how often something runs."""

    def forward(self, x: Tensor, steps: int) -> Tensor:
        y = self.run(x)
        for _ in range(steps):
            y = y.tanh() + y
        return y


class Levels(Block):
    def forward(self, levels: Any) -> Any:
        return [self.run(level) for level in levels]


class OfBatch(Block):
    def forward(self, batch: Any) -> Tensor:
        y = self.run(batch.image)
        return y if batch.mask is None else y * batch.mask


class OfDictionary(Block):
    def forward(self, batch: Any) -> Tensor:
        y = self.run(batch["image"])
        return y * batch["mask"] if batch.get("mask") is not None else y


class Inside(nn.Module):
    """Hands a container on to a part that looks into it."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, given: Any) -> Any:
        return self.part(given)


class Filling(Block):
    """Puts what it computes into the dictionary that it is given."""

    def forward(self, batch: Any) -> Any:
        batch["image"] = self.run(batch["image"]).relu()
        return batch


class Passed(nn.Module):
    """One dictionary goes through all parts."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Filling(), Filling()])

    def forward(self, batch: Any) -> Any:
        for part in self.parts:
            batch = part(batch)
        return batch["image"]


class Untraceable(nn.Module):
    """Calls a part by name, in code that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.part = SomeNames()

    def forward(self, x: Tensor) -> Tensor:
        while x.abs().max() > 1000:
            x = x / 2
        return self.part(x, last=x[:, :, 1:-1, 1:-1], second=MASK)


Call = tuple[tuple[Any, ...], dict[str, Any]]

# How a model is made, its example inputs, the call that they are, and calls of other kinds.
CASES: dict[str, tuple[Callable[[], nn.Module], Any, Call, list[Call]]] = {
    "keywords": (
        OnlyNames,
        {"values": X, "mask": MASK},
        ((), {"values": X, "mask": MASK}),
        [((), {"values": X}), ((), {"values": X[..., 1:], "mask": MASK[..., 1:]})],
    ),
    "an option that is None": (
        OnlyNames,
        {"values": X, "mask": None},
        ((), {"values": X}),
        [((), {"values": X, "mask": MASK})],
    ),
    "one option of several": (
        SomeNames,
        {"x": X, "second": MASK},
        ((X,), {"second": MASK}),
        [((X, MASK), {}), ((X,), {"second": MASK, "last": MASK}), ((X, None, MASK), {})],
    ),
    "in another order": (
        SomeNames,
        {"last": MASK, "second": 2 * MASK, "x": X},
        ((X, None, 2 * MASK), {"last": MASK}),
        [((X,), {"last": MASK})],
    ),
    "both, bound": (
        SomeNames,
        inspect.signature(SomeNames().forward).bind(X, last=MASK),
        ((X,), {"last": MASK}),
        [((X, MASK), {})],
    ),
    "names that forward does not list": (
        AnyNames,
        {"x": X, "b": MASK, "a": 2 * MASK},
        ((X,), {"b": MASK, "a": 2 * MASK}),
        [((X,), {"b": MASK}), ((X,), {}), ((X,), {"b": MASK, "c": MASK})],
    ),
    "a mapping that is no dictionary": (
        OnlyNames,
        Encoding(values=X, mask=MASK),
        ((), {"values": X, "mask": MASK}),
        [],
    ),
    "a flag and a name": (
        Flagged,
        {"x": X, "flag": True, "how": "tanh"},
        ((X, True, "tanh"), {}),
        [((X,), {}), ((X, True), {}), ((X, 1, "tanh"), {})],
    ),
    "a flag by position": (Flagged, (X, True), ((X, True), {}), [((X,), {})]),
    "constants that have to be given": (
        Required,
        {"x": X, "mode": "nearest", "size": (9, 9)},
        ((X, "nearest", (9, 9)), {}),
        [((X, "nearest", (7, 8)), {}), ((X, "bilinear", (9, 9)), {})],
    ),
    "a number that decides": (Steps, {"x": X, "steps": 2}, ((X, 2), {}), [((X, 3), {})]),
    "a list": (
        Levels,
        {"levels": [X, X[..., 2:]]},
        (([X, X[..., 2:]],), {}),
        [(([X],), {}), (((X, X, X),), {})],
    ),
    "a dataclass": (
        OfBatch,
        {"batch": Batch(X, MASK, ("a", "b"))},
        ((Batch(X, MASK, ("a", "b")),), {}),
        [((Batch(X),), {}), ((Batch(X, MASK, ("c",)),), {})],
    ),
    "a dataclass by position": (OfBatch, Batch(X), ((Batch(X),), {}), [((Batch(X, MASK),), {})]),
    "a dictionary by name": (
        OfDictionary,
        {"batch": {"image": X, "mask": None}},
        (({"image": X, "mask": None},), {}),
        [(({"image": X, "mask": MASK},), {}), (({"image": X},), {})],
    ),
    "a dictionary that is the one argument": (
        OfDictionary,
        {"image": X, "mask": MASK},
        (({"image": X, "mask": MASK},), {}),
        [(({"image": X},), {})],
    ),
    "a dictionary in a tuple": (
        OfDictionary,
        ({"batch": X, "image": X},),
        (({"batch": X, "image": X},), {}),
        [],
    ),
    "an ordered dictionary": (
        OfDictionary,
        {"batch": OrderedDict(image=X, mask=MASK)},
        ((OrderedDict(image=X, mask=MASK),), {}),
        [(({"image": X, "mask": MASK},), {}), ((OrderedDict(image=X),), {})],
    ),
    "a list for a part": (
        lambda: Inside(Levels()),
        {"given": [X, X]},
        (([X, X],), {}),
        [(([X],), {})],
    ),
    "a dataclass for a part": (
        lambda: Inside(OfBatch()),
        {"given": Batch(X, MASK)},
        ((Batch(X, MASK),), {}),
        [((Batch(X),), {})],
    ),
    "a dictionary that is filled": (
        Passed,
        {"batch": {"image": X}},
        (({"image": X},), {}),
        [(({"image": X[:1], "names": ["a"]},), {})],
    ),
    "a part that is called by name": (Untraceable, {"x": X}, ((X,), {}), []),
}


def outputs(model: Any, call: Call) -> Any:
    args, kwargs = copy.deepcopy(call)
    with torch.no_grad():
        return model(*args, **kwargs)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_fuses_and_does_what_it_did(case: str, inplace: bool) -> None:
    make, example_inputs, usual, others = CASES[case]
    model = ready(make())
    original = copy.deepcopy(model)
    fused = reparam.fuse(model, example_inputs, inplace=inplace)
    counts = count_operators(partial(fused, **usual[1]), usual[0])
    assert not counts.batch_norms, f"{case}\n{fused.reparam_report}"
    assert any("on the example inputs" in note for note in fused.reparam_report.notes)
    for call in (usual, *others):
        assert relative_error(outputs(fused, call), outputs(original, call)) <= EXACT, call


@pytest.mark.parametrize("case", CASES)
def test_verify_takes_them_too(case: str) -> None:
    make, example_inputs, _, _ = CASES[case]
    model = ready(make())
    fused = reparam.fuse(model, example_inputs)
    result = reparam.verify(model, fused, example_inputs)
    assert result.fused
    assert max(result.fused) <= EXACT


def test_another_result_at_inputs_by_name_is_noticed() -> None:
    """Values by name change their size and their type as those by position do."""
    model = ready(OnlyNames())
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.conv.bias += 1e-3
    assert max(reparam.verify(model, other, {"values": X}).fused) > 1e-6
    single = model.float()
    narrow = {"values": X.float(), "mask": MASK.float()}
    result = reparam.verify(single, reparam.fuse(single, narrow), narrow)
    assert 0 < max(result.original) < 1e-5  # compared in float64
    assert not result.notes


@pytest.mark.parametrize(
    ("make", "wrong", "words"),
    [
        (OnlyNames, {"value": X}, "forward has no 'value', did you mean 'values'?"),
        (SomeNames, {"x": X, "secnd": MASK}, "forward has no 'secnd', did you mean 'second'?"),
        (OnlyNames, {"mask": MASK}, "missing a required"),
        (OnlyNames, X, "too many positional arguments"),
    ],
)
def test_wrong_names(make: Any, wrong: Any, words: str) -> None:
    model = ready(make())
    for call in (reparam.plan, reparam.fuse, reparam.equalize):
        with pytest.raises(ReparamError, match="example_inputs") as problem:
            call(model, wrong)
        assert words in str(problem.value)
    with pytest.raises(ReparamError, match="example_inputs"):
        reparam.verify(model, model, wrong)


def test_what_is_given_stays_as_it_was() -> None:
    batch = Batch(X.clone(), MASK.clone())
    model = ready(OfBatch())
    reparam.fuse(model, {"batch": batch})
    assert torch.equal(batch.image, X)
    assert batch.mask is not None
    assert torch.equal(batch.mask, MASK)


@pytest.mark.parametrize("example_inputs", [{"x": X, "last": MASK}, {"last": MASK, "x": X}])
def test_graph_modules_and_programs(example_inputs: Any) -> None:
    model = ready(SomeNames())
    kwargs = {"x": X, "last": MASK}
    program = torch.export.export(model, (), kwargs)
    for recorded in (program, program.module()):
        fused = reparam.fuse(recorded, example_inputs)
        assert len(fused.reparam_report.fused) == 1
        assert any("on the example inputs" in note for note in fused.reparam_report.notes)
        assert max(reparam.verify(recorded, fused, example_inputs).fused) <= EXACT


def test_graph_modules_of_symbolic_tracing() -> None:
    graph = fx.symbolic_trace(ready(Scaled()))
    for given in ({"x": X, "scale": MASK}, {"scale": MASK, "x": X}):
        fused = reparam.fuse(graph, given)
        assert len(fused.reparam_report.fused) == 1
        assert relative_error(outputs(fused, ((), given)), outputs(graph, ((), given))) <= EXACT


def test_equalize_takes_them_too() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, *, values: Tensor, scale: Tensor) -> Tensor:
            return self.b(self.a(values).relu()) * scale

    model = Layers().double().eval()
    given = {"values": torch.randn(3, 4).double(), "scale": torch.ones(2).double()}
    equal = reparam.equalize(model, given)
    assert equal.reparam_report.equalized
    assert any("on the example inputs" in note for note in equal.reparam_report.notes)
    assert relative_error(outputs(equal, ((), given)), outputs(model, ((), given))) <= EXACT
