"""How many axes a value has, where only what it meets tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam import ReparamError
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run
from tests.support.randomise import randomise_batch_norm


class Widened(nn.Module):
    """A matrix meets a constant of four axes, which gives it two: it stays a matrix elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.conv, self.gamma = nn.Conv2d(4, 2, 1), nn.Parameter(torch.randn(1, 4, 1, 1))

    def matrix(self, x: Tensor) -> Tensor:
        return x.amax((0, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.matrix(x)
        turned = self.first(y).transpose(0, 1)
        return self.conv(y * self.gamma), self.second(turned)


class Added(Widened):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.matrix(x)
        turned = self.first(y).movedim(0, 1)
        return self.conv(self.gamma + y), self.second(turned)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("kind", [Widened, Added])
def test_a_constant_may_add_axes(kind: type[nn.Module], verify: bool) -> None:
    model = kind().double().eval()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    fused = reparam.fuse(model, verify=verify)  # a warning would be an error
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-12


class ByRows(nn.Module):
    """A product with a matrix goes row by row: what follows tells how many axes came before."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.shift = (
            nn.Parameter(torch.randn(4, 4)),
            nn.Parameter(torch.randn(1, 1, 1)),
        )
        self.second, self.conv = nn.Parameter(torch.randn(4, 4)), nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (x.cos() @ self.matrix - self.shift) @ self.second.t()
        result: Tensor = self.conv(y.relu())
        return result


def test_a_product_with_a_matrix_keeps_the_number_of_axes() -> None:
    model, x = ByRows().double().eval(), torch.randn(2, 1, 4, 4, dtype=torch.float64)
    fused = reparam.fuse(model)
    assert [row.counts for row in fused.reparam_report.fused] == [(3, 2)]
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-12


class Borrowed(nn.Module):
    """A norm's statistics, given to the function: they are for values like the norm's own."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.norm, self.linear = kind(6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        norm: Any = self.norm
        mean, variance = norm.running_mean, norm.running_var
        y = F.batch_norm(x, mean, variance, norm.weight, norm.bias, False, 0.1, norm.eps)
        result: Tensor = self.linear(y)
        return result


@pytest.mark.parametrize(
    ("kind", "sizes", "norms"), [(nn.BatchNorm2d, (3, 6, 8, 6), 1), (nn.BatchNorm1d, (3, 6), 0)]
)
def test_statistics_tell_what_they_are_for(
    kind: type[nn.Module], sizes: tuple[int, ...], norms: int
) -> None:
    """Rows of features go through one linear layer, images of as many columns do not."""
    model = randomise_batch_norm(Borrowed(kind).double().eval(), 0)
    x = torch.randn(sizes, dtype=torch.float64)
    fused = reparam.fuse(model)
    assert count_operators(fused, (x,)).batch_norms == norms
    if not norms:  # a value of another rank is not normalised along the axis of its rows
        with pytest.raises(ReparamError, match="was fused for values of 2 axes"):
            fused(torch.randn(2, 6, 6, dtype=torch.float64))
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-12


class Own(Borrowed):
    """Keeps the statistics itself: nothing says what they are for."""

    def __init__(self) -> None:
        super().__init__(nn.BatchNorm1d)
        kept, self.norm = self.norm, nn.Identity()
        for name in ("running_mean", "running_var"):
            self.norm.register_buffer(name, getattr(kept, name))
        self.norm.weight, self.norm.bias, self.norm.eps = kept.weight, kept.bias, kept.eps


@pytest.mark.parametrize("sizes", [(3, 6), (3, 6, 6)])
def test_a_function_may_normalise_anything(sizes: tuple[int, ...]) -> None:
    """Rows of features, or as many channels of as many columns."""
    model, x = Own().double().eval(), torch.randn(sizes, dtype=torch.float64)
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-12
    assert count_operators(reparam.fuse(model, x), (x,)).batch_norms == (len(sizes) != 2)


class Reduced(nn.Module):
    """How many axes its values have is told by what comes after them alone."""

    def __init__(self, reduce: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.reduce = reduce
        self.scale = nn.Parameter(torch.rand(8) + 0.5)
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.reduce(x.tanh()).permute(0, 2, 1) * self.scale)


@pytest.mark.parametrize(
    "reduce",
    [
        lambda x: torch.stack((x, x), -1).sum(-1),
        lambda x: torch.stack((x, x, x), 1).mean((1,)),
        lambda x: x.unsqueeze(-1)[..., 0],
    ],
)
def test_what_comes_after_tells_of_what_is_reduced(reduce: Callable[[Tensor], Tensor]) -> None:
    model = Reduced(reduce).double().eval()
    x = torch.randn(2, 8, 5, dtype=torch.float64)
    fused = reparam.fuse(model)
    assert not any("verified" in row.reason for row in fused.reparam_report.refused)
    assert count_operators(fused, (x,)).linears == 1
    assert count_operators(fused, (x,)).multiplications == 0
    assert relative_error(run(fused, (x,)), run(model, (x,))) < 1e-12


def test_a_norm_of_any_rank_is_not_taken_for_one_of_rows() -> None:
    model = nn.Sequential(nn.Linear(9, 9), nn.SyncBatchNorm(9)).double().eval()
    x = torch.randn(2, 9, 5, 9, dtype=torch.float64)
    fused = reparam.fuse(randomise_batch_norm(model, 0))
    assert relative_error(run(fused, (x,)), run(model, (x,))) < 1e-12
