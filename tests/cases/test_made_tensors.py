"""Tensors that a forward makes: constants where numbers decide what is in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.cases.checking import assert_exact
from tests.refusals.checking import Network, assert_reported, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run

C = 4
LIKE: dict[str, Any] = {"dtype": torch.float64}


def network(forward: Callable[..., Any], **parts: Any) -> nn.Module:
    parts = {"conv": nn.Conv2d(C, C, 3), "norm": nn.BatchNorm2d(C), **parts}
    return ready(Network(forward, gain=torch.rand(C, 1, 3, 3) + 0.5, **parts))


# -- What is a constant ---------------------------------------------------------------------------

FACTORS: dict[str, Callable[[], Tensor]] = {
    "full": lambda: torch.full((C, 1, 1), 2.0, **LIKE),
    "ones": lambda: torch.ones(C, 1, 1, **LIKE) * 3,
    "zeros": lambda: torch.zeros(1, C, 1, 1, **LIKE) + 0.5,
    "arange": lambda: torch.arange(1, C + 1, **LIKE)[:, None, None],
    "linspace": lambda: torch.linspace(1, 2, C, **LIKE).view(-1, 1, 1),
    "eye": lambda: torch.eye(C, **LIKE).sum(1).reshape(C, 1, 1) * 2,
    "tensor": lambda: torch.tensor([[[1.0]], [[2.0]], [[3.0]], [[4.0]]], **LIKE),
    "a scalar": lambda: torch.tensor(0.5),
    "integers": lambda: (torch.arange(C) + 1).view(C, 1, 1),
}


@pytest.mark.parametrize("name", FACTORS)
def test_a_factor(name: str) -> None:
    model = network(lambda self, x: self.conv(x) * FACTORS[name]())
    assert_exact(model, images(), total=1)


def in_a_loop(self: Any) -> Tensor:
    """A depthwise kernel written into a dense one."""
    dense = torch.zeros(C, C, 3, 3, **LIKE)
    for channel in range(C):
        dense[channel, channel, :, :] = self.gain[channel, 0, :, :]
    return dense


def in_place(self: Any) -> Tensor:
    dense = torch.eye(C, **LIKE)[:, :, None, None].repeat(1, 1, 3, 3)
    dense.mul_(self.gain)
    dense += 0.1
    return dense


def read_between(self: Any) -> Tensor:
    """It is one constant before a write, and another one after it."""
    dense = in_a_loop(self)
    total = dense.sum()
    dense[0, 1] = total
    return dense * total


def through_a_view_that_is_read(self: Any) -> Tensor:
    dense = in_a_loop(self)
    part = dense.permute(1, 0, 2, 3)
    part[0, 1] = self.gain[0, 0]
    return part


KERNELS: dict[str, Callable[[Any], Tensor]] = {
    "in a loop": in_a_loop,
    "in place": in_place,
    "read between": read_between,
    "through a view that is read": through_a_view_that_is_read,
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_computed_once(name: str) -> None:
    """Whether it joins another operator or not."""
    for forward in (
        lambda self, x: self.norm(F.conv2d(x, KERNELS[name](self))),
        lambda self, x: F.conv2d(x, KERNELS[name](self)).relu(),
    ):
        model, x = network(forward), images()
        fused = assert_exact(model, x)
        counts = count_operators(fused, (x,))
        assert (counts.convolutions, counts.affine) == (1, 1)
        assert "assign" not in str(vars(fused).get("forward", ""))


def test_the_type_is_that_of_a_run() -> None:
    """What is made of numbers has the default type, not the one it is computed in here."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return F.conv2d(x, torch.ones(C, 1, 3, 3) / 9, groups=C) * (torch.arange(C) + 0.5)[0]

    model, x = Network(forward).eval(), images().float()
    fused = reparam.fuse(model)
    assert count_operators(fused, (x,)).total == 1
    assert run(fused, (x,)).dtype == torch.float32
    assert relative_error(run(fused, (x,)), run(model, (x,))) < 1e-6


def test_of_two_types_nothing_is_folded() -> None:
    model = network(lambda self, x: self.conv(x) * torch.full((C, 1, 1), 2.0))
    fused = assert_exact(model, images())
    assert_reported(fused.reparam_report, "mul", "parameters of different dtypes")


# -- What is none ---------------------------------------------------------------------------------


def filled_with_the_input(self: Any, x: Tensor) -> Tensor:
    whole = torch.zeros(2, C, 7, 8, **LIKE)
    whole[:, :2] = x[:, 2:]
    return self.norm(self.conv(whole))


def seen_through_a_view(self: Any, x: Tensor) -> Tensor:
    factor = torch.ones(C, 1, 1, **LIKE)
    view = factor.view(-1)
    view[0] = 3.0
    return self.conv(x) * factor


def seen_through_a_view_of_what_is_computed(self: Any, x: Tensor) -> Tensor:
    factor = self.gain[:, :, :1, 0].exp()
    factor.view(-1).mul_(2.0)
    return self.conv(x) * (factor + 1)


def written_by_the_input(self: Any, x: Tensor) -> Tensor:
    factor = torch.ones(C, 1, 1, **LIKE)
    before = factor * 2
    factor[0] = x.mean()
    return self.conv(x) * before + self.conv(x) * factor


def returned(self: Any, x: Tensor) -> Any:
    mask = torch.ones(C, **LIKE)
    mask[0] = self.gain.sum()
    return self.norm(self.conv(x)), mask


def of_a_size(self: Any, x: Tensor) -> Tensor:
    positions = torch.arange(x.shape[-1] - 2, **LIKE)
    return self.norm(self.conv(x)) + positions


def counted(self: Any, x: Tensor) -> Tensor:
    """What it asks of its numbers decides how it goes on."""
    steps = torch.arange(3)
    for step in steps.tolist():
        x = self.conv(x) if steps[step] == 1 else x
    return self.norm(x)


def counted_and_used(self: Any, x: Tensor) -> Tensor:
    """A tensor would be a constant, if its numbers did not decide how it goes on, too."""
    steps = torch.arange(3, **LIKE)
    for step in steps.tolist():
        x = self.conv(x) if step == 1 else x
    return self.norm(x) * steps[2]


def never_the_same(self: Any, x: Tensor) -> Tensor:
    self.calls = getattr(self, "calls", 0) + 1
    return self.norm(self.conv(x)) * torch.full((C, 1, 1), self.calls, **LIKE)


NONE = [
    filled_with_the_input, seen_through_a_view, seen_through_a_view_of_what_is_computed,
    written_by_the_input, returned, of_a_size, counted, counted_and_used, never_the_same,
]  # fmt: skip


@pytest.mark.parametrize("forward", NONE)
def test_what_is_no_constant_is_right(forward: Callable[..., Any]) -> None:
    assert_exact(network(forward), images(), calls=3)


@pytest.mark.parametrize("factory", [torch.rand, torch.randn])
def test_random_numbers_are_drawn_in_every_call(factory: Any) -> None:
    model = network(lambda self, x: self.conv(x) * factory(C, 1, 1, **LIKE))
    fused = assert_exact(model, images())
    assert_reported(fused.reparam_report, "the model", "makes a tensor")
