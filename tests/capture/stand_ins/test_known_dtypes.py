"""Comparisons of types that a weight makes certain, and calls in which they come out otherwise."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.support.counting import count_operators


class Adapted(nn.Module):
    """A convolution and a low-rank one beside it, whose code asks for types."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Conv2d(3, 4, 3)
        self.down = nn.Conv2d(3, 2, 3)
        self.up = nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor, **settings: Any) -> Tensor:
        result = self.base(x)
        dtype = result.dtype
        if x.dtype != self.down.weight.dtype:
            return result * 2
        if not settings.get("plain"):
            result = result + self.up(self.down(x)) * 3
        return result.to(dtype)


class Spread(nn.Module):
    """A network that hands on whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Adapted(), nn.BatchNorm2d(4))

    def forward(self, *args: Any) -> Any:
        return self.layers(*args)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = Spread().double().eval()
    nn.init.normal_(model.layers[1].running_mean)
    nn.init.uniform_(model.layers[1].running_var, 0.5, 2)
    return model


def largest(one: Tensor, two: Tensor) -> float:
    return float((one - two).detach().abs().max())


def test_the_branches_become_one_operator(model: nn.Module) -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    fused = reparam.fuse(model)
    assert largest(fused(x), model(x)) < 1e-12
    counts = count_operators(fused, (x,))
    assert (counts.convolutions, counts.batch_norms, counts.additions) == (1, 0, 0)


def test_autocast_runs_the_code_as_it_was(model: nn.Module) -> None:
    model = model.float()
    x = torch.randn(2, 3, 8, 8).bfloat16()
    fused = reparam.fuse(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fused(x), model(x))


def test_a_hook_may_give_a_part_other_arguments(model: nn.Module) -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    fused = reparam.fuse(model)

    def plain(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, "plain": True}

    before = model(x)
    for network in (model, fused):
        part = next(m for m in network.modules() if isinstance(m, Adapted))
        part.register_forward_pre_hook(plain, with_kwargs=True)
    assert largest(fused(x), model(x)) < 1e-12
    assert largest(model(x), before) > 1e-3


class LowRank(nn.Module):
    """Branches that become one new operator."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(6, 6)
        self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base(x) + self.up(self.down(x)) * 0.5
        return result


class Converting(nn.Module):
    """The code around asks for the type of what the branches compute."""

    def __init__(self) -> None:
        super().__init__()
        self.branches, self.unused = LowRank(), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branches(x)
        z = y.to(torch.float64).to(y.dtype)
        self.unused(z)
        return z


def test_the_weight_that_tells_the_type_may_be_gone() -> None:
    model = Converting().eval().double()
    fused = reparam.fuse(model)
    assert not hasattr(fused.branches.base, "weight")
    x = torch.randn(2, 6, dtype=torch.float64)
    torch.testing.assert_close(fused(x), model(x))


class Widening(nn.Module):
    """Its parameters say of the type that it gives its input, and not of that which it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.branches, self.linear = LowRank(), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(torch.float64)
        z: Tensor = self.branches(y) + self.linear(y)
        return z.to(torch.float64)


def test_a_conversion_of_what_may_have_any_type_stays() -> None:
    model = Widening().eval().double()
    fused = reparam.fuse(model)
    assert count_operators(fused, (torch.randn(2, 6),)).linears == 1
    for dtype in (torch.float32, torch.float64, torch.int64):
        x = (torch.randn(2, 6) * 9).to(dtype)
        torch.testing.assert_close(fused(x), model(x))
