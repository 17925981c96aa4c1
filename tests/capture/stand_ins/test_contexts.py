"""Contexts that change no value, such as `torch.no_grad`, stay where they are in new code."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.refusals.checking import EXACT, assert_reported, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error


class Block(nn.Module):
    """A convolution and a norm beside another convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.skip, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)

    def sum(self, x: Tensor) -> Tensor:
        total: Tensor = self.bn(self.conv(x)) + self.skip(x)
        return total.relu()


class Decorated(Block):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.sum(x))
        return result


class Inferring(Block):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.sum(x))
        return result


class Inside(Block):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.sum(x)
        result: Tensor = self.last(y)
        return result


class Nested(Block):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x.mean((2, 3), keepdim=True)
            with torch.enable_grad():
                z = self.sum(x)
        result: Tensor = self.last(z * y)
        return result


class OfAPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part, self.last = Decorated(), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            pass
        result: Tensor = self.last(self.part(x).relu())
        return result


KINDS = [Decorated, Inferring, Inside, Nested, OfAPart]


def image() -> Tensor:
    return torch.randn(2, 4, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", KINDS)
def test_operators_join_in_contexts(kind: Callable[[], nn.Module]) -> None:
    model, x = ready(kind()), image()
    fused = reparam.fuse(model)
    for other in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), model):
        y = other(x)
        assert relative_error(y.detach(), model(x).detach()) < EXACT
        assert y.requires_grad == model(x).requires_grad
        assert y.is_inference() == model(x).is_inference()
        assert torch.is_grad_enabled()
    assert count_operators(fused, (x,)).batch_norms == 0
    assert count_operators(fused, (x,)).additions == 0
    twice = reparam.fuse(fused)
    assert not twice.reparam_report.fused
    assert relative_error(twice(x).detach(), model(x).detach()) < EXACT


def test_gradients_are_those_of_the_original() -> None:
    model, x = ready(Inside()), image()
    fused = reparam.fuse(model)
    for network in (model, fused):
        network.zero_grad()
        network(x).square().mean().backward()
    reached = {name for name, weight in fused.named_parameters() if weight.grad is not None}
    assert reached == {"last.weight", "last.bias"}
    assert relative_error(fused.last.weight.grad, model.last.weight.grad) < EXACT


class Crossing(Block):
    """A norm outside of the context that its convolution is in."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.conv(x)
        result: Tensor = self.bn(y).relu()
        return result


class Between(Block):
    """Operators that no context holds, and one between that one does."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        with torch.no_grad():
            z = self.skip(y)
        result: Tensor = self.bn(y) + z
        return result


@pytest.mark.parametrize("kind", [Crossing, Between])
def test_nothing_joins_across_the_end_of_a_context(kind: Callable[[], nn.Module]) -> None:
    model, x = ready(kind()), image()
    fused = reparam.fuse(model)
    assert relative_error(fused(x).detach(), model(x).detach()) < EXACT
    for network in (model, fused):
        network.zero_grad()
        network(x).square().mean().backward()
        outside = network.conv if kind is Crossing else network.skip
        assert all(weight.grad is None for weight in outside.parameters())
    if kind is Crossing:
        assert fused.bn.weight.grad is not None
        assert_reported(fused.reparam_report, "bn", "a part of it runs in a context")


class Raising(Block):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            torch._assert(x.shape[1] == 4, "four channels")
            y = self.sum(x)
        return y


def test_an_exception_leaves_the_context() -> None:
    model, x = ready(Raising()), image()
    fused = reparam.fuse(model)
    assert count_operators(fused, (x,)).batch_norms == 0
    with pytest.raises(AssertionError, match="four channels"):
        fused(x[:, :3])
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("kind", [Decorated, Inside])
def test_fused_code_is_exported(kind: Callable[[], nn.Module]) -> None:
    model, x = ready(kind()), image()
    program = torch.export.export(reparam.fuse(model), (x,))
    assert relative_error(program.module()(x).detach(), model(x).detach()) < EXACT


class Casting(Block):
    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, x: Tensor) -> Tensor:
        return self.sum(x)


def test_a_context_that_changes_values_keeps_the_code() -> None:
    model, x = ready(Casting()), image()
    fused = reparam.fuse(model)
    assert_reported(fused.reparam_report, "add", "enters a context such as torch.autocast")
    assert torch.equal(fused(x), model(x))
