"""How many axes a value has, where only what it meets tells."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.support.errors import relative_error, run


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
