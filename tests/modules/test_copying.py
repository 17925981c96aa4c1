"""A copy shares nothing with its model, and making it leaves the model alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.modules import copy_model
from tests.refusals.checking import images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() * self.scale


class CopiesAnew(Scale):
    """Its copies start afresh, and keep a view of their parameter."""

    def __deepcopy__(self, memo: dict[int, Any]) -> CopiesAnew:
        new = CopiesAnew()
        new.scale = copy.deepcopy(self.scale, memo)
        nn.init.ones_(new.scale)
        new.seen = new.scale.detach()
        return new


class UnpacksAnew(Scale):
    """The same when it gets its state."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        nn.init.ones_(self.scale)
        self.seen = self.scale.detach()


@pytest.mark.parametrize("kind", [CopiesAnew, UnpacksAnew])
def test_modules_that_copy_themselves_do_not_reach_the_model(kind: type[Scale]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), kind()).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fused = reparam.fuse(model)
    assert len(fused.reparam_report.fused) == 1
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    there = {tensor.data_ptr() for tensor in model.state_dict().values()}
    last: Any = fused[2]
    assert last.scale.data_ptr() not in there
    assert last.seen.data_ptr() == last.scale.data_ptr()


class Block(nn.Module):
    """Branches whose forward gets new code."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 3, padding=1)
        self.b = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)

    def _joined(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x) + self.b(x))

    def forward(self, x: Tensor) -> Tensor:
        return self._joined(x).relu()


class Shared(Block):
    """A part that its copies share: a frozen teacher. It holds a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = self._forward

    def _forward(self, x: Tensor) -> Tensor:
        return self._joined(x).relu()

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        return self


class SharesParts(Block):
    """A copy of its own, whose parts and whose registries of parts are the original's."""

    def __deepcopy__(self, memo: dict[int, Any]) -> SharesParts:
        return copy.copy(self)


class SharesWeights(Block):
    """Other layers of the same weights."""

    def __deepcopy__(self, memo: dict[int, Any]) -> SharesWeights:
        memo.update((id(parameter), parameter) for parameter in self.parameters())
        again = SharesWeights()
        for name in ("a", "b", "norm"):
            setattr(again, name, copy.deepcopy(getattr(self, name), memo))
        return again.train(self.training)


SHARING = {
    "a part": lambda: nn.Sequential(Shared(), Block()),
    "a part deep inside": lambda: nn.Sequential(nn.Sequential(nn.Sequential(Shared()), Block())),
    "all": Shared,
    "all the parts": SharesParts,
    "parts of a part": lambda: nn.Sequential(SharesParts(), Block()),
    "weights": lambda: nn.Sequential(SharesWeights(), Block()),
}


def seen(model: nn.Module) -> list[Any]:
    """What can be seen of a model: its modules, what they hold, the values of its tensors."""
    modules = [
        (path, id(module), type(module), sorted(vars(module)), list(map(id, module.children())))
        for path, module in model.named_modules()
    ]
    tensors = [
        (name, id(tensor), tensor.dtype, tensor.tolist())
        for name, tensor in model.state_dict(keep_vars=True).items()
    ]
    return [*modules, *tensors]


@pytest.mark.parametrize("name", SHARING)
def test_what_a_copy_shares_with_its_model_is_left_alone(name: str) -> None:
    model, x = ready(SHARING[name]()), images()
    before, expected = seen(model), model(x).detach()
    fused = reparam.fuse(model, x)
    assert seen(model) == before
    assert fused is not model
    assert relative_error(fused(x).detach(), expected) <= 1e-9
    assert fused.reparam_report.fused
    if name != "weights":  # whose own copying makes no copy of fused code
        reparam.verify(model, fused, x)
        assert seen(model) == before
    reparam.equalize(model, x)
    assert seen(model) == before


class WakesUp(nn.Sequential):
    """Its copies are made anew, and so are in training mode."""

    def __deepcopy__(self, memo: dict[int, Any]) -> WakesUp:
        twin = WakesUp(nn.Dropout(), nn.BatchNorm2d(4)).to(self[1].weight)
        twin.load_state_dict(self.state_dict())
        return twin


def test_a_copy_is_in_the_mode_of_its_model() -> None:
    layers = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
    model, x = ready(nn.Sequential(*layers, WakesUp(nn.Dropout(), nn.BatchNorm2d(4)))), images()
    assert copy.deepcopy(model)[3].training
    for inputs in ((), (x,)):
        fused = reparam.fuse(model, *inputs)
        assert not any(module.training for module in fused.modules())
        assert relative_error(fused(x).detach(), model(x).detach()) <= 1e-9


def test_a_float32_model_is_not_widened_by_comparing_it() -> None:
    model, x = ready(nn.Sequential(Shared(), Block())).float(), images().float()
    before = seen(model)
    fused = reparam.fuse(model, x)
    assert max(reparam.verify(model, fused, x).fused) < 1e-5
    assert seen(model) == before


def test_fused_code_of_a_shared_part_is_that_of_its_copy() -> None:
    x = images()
    fused: Any = reparam.fuse(ready(nn.Sequential(Shared(), Block())), x)
    again: Any = reparam.fuse(fused, x)
    assert again[0] is not fused[0]
    assert vars(again[0])["forward"].owner is again[0]


def test_a_shallow_copy_inside_a_model_keeps_its_parts() -> None:
    """Two blocks with one registry of parts: new code for one is none for the other."""
    first = Block()
    model, x = ready(nn.Sequential(first, nn.ReLU(), copy.copy(first))), images()
    expected = model(x).detach()
    for inplace in (False, True):
        fused = reparam.fuse(model, x, inplace=inplace)
        assert relative_error(fused(x).detach(), expected) <= 1e-9
        assert count_operators(fused, (x,)).batch_norms == 0


def test_a_shallow_copy_of_a_model_that_is_changed_in_place_still_runs() -> None:
    model, x = ready(Block()), images()
    other, expected = copy.copy(model), model(x).detach()
    names = [name for name, _ in other.named_parameters()]
    reparam.fuse(model, inplace=True)
    assert count_operators(model, (x,)).batch_norms == 0
    assert [name for name, _ in other.named_parameters()] == names
    assert relative_error(other(x).detach(), expected) <= 1e-9


def test_a_rule_is_checked_on_weights_of_its_own() -> None:
    class Alike(Scale):
        def __deepcopy__(self, memo: dict[int, Any]) -> Alike:
            return self

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    module = Alike()
    before = seen(module)
    rules = {Alike: lambda module, x: x.scale(module.scale)}
    reparam.testing.rulecheck(module, (2, 8, 5, 5), rules=rules)
    assert seen(module) == before


class Hooked(nn.Module):
    """Hooks and attributes that are functions, and close over the model or parts of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.last = nn.Conv2d(4, 4, 1)
        self.seen: dict[str, Tensor] = {}
        calls, seen, weight = 0, self.seen, self.last.weight

        def count(module: nn.Module, *_: Any) -> None:
            nonlocal calls
            calls += 1
            self.seen["calls"] = torch.tensor(calls)

        def again(depth: int) -> nn.Module:
            return again(depth - 1) if depth else self.first

        self.first.register_forward_hook(count)
        self.last.register_forward_hook(lambda *a: seen.update(last=a[-1]))
        self.steps = [lambda x: again(2)(x).relu(), lambda x: F.conv2d(x, weight)]
        self.counted = lambda: calls

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.last(self.steps[0](x))
        return {"y": y, "z": self.steps[1](y), **self.seen}


def test_functions_of_a_copy_read_the_copy() -> None:
    """Found by a reviewer: features that hooks collect were those of the original."""
    model = ready(Hooked())
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    for copied in (copy_model(model), reparam.fuse(model), reparam.fuse(model, x)):
        with torch.no_grad():
            result = copied(x)
            assert model.seen == {}
            expected = model(x)
        model.seen.clear()
        assert result.keys() == expected.keys() == {"y", "z", "calls", "last"}
        for name in ("y", "z", "last"):
            assert relative_error(result[name], expected[name]) <= 1e-9
        for parameter in copied.parameters():  # nothing of the original is left in it
            parameter.data.zero_()
        assert not copied(x)["y"].any()
        model.seen.clear()
    # What is no part of the model goes on to be one for all.
    assert copied.counted() == model.counted() > 3


class Collecting(nn.Module):
    """Keeps what its parts return in an attribute, by hooks that close over it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
        self.last = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.features: dict[str, Tensor] = {}
        for name in ("first", "last"):
            self.get_submodule(name).register_forward_hook(self.keep(name))

    def keep(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            self.features[name] = output

        return hook

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.last(self.first(x).relu()), **self.features}


@pytest.mark.parametrize("with_inputs", [False, True])
def test_what_hooks_collect_is_collected_in_the_fused_model(with_inputs: bool) -> None:
    model, x = ready(Collecting()), images()
    fused = reparam.fuse(model, x if with_inputs else None)
    assert len(fused.reparam_report.fused) == 2
    with torch.no_grad():
        result = fused(x)
        assert model.features == {}
        expected = model(x)
    assert result.keys() == expected.keys()
    assert all(relative_error(result[name], expected[name]) <= 1e-9 for name in result)
