"""A value inside a call that is read outside, though it is not what the call returns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.support.errors import relative_error, run
from tests.support.randomise import randomise_batch_norm


class Stage(nn.Module):
    """Puts what it computes on the way into a list of its caller's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.gamma, self.last = nn.Parameter(torch.rand(4, 1, 1)), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor, kept: list[Tensor]) -> Tensor:
        y = self.norm(self.first(x)).relu()
        kept.append(y)
        return self.last(y * self.gamma)


class Named(Stage):
    """Puts it into a dictionary."""

    def forward(self, x: Tensor, kept: dict[str, Tensor]) -> Tensor:
        y = self.norm(self.first(x)).relu()
        kept[f"level{len(kept)}"] = y
        return self.last(y * self.gamma)


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Stage() for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        kept: list[Tensor] = []
        for stage in self.stages:
            x = stage(x, kept)
        return [*kept, x]


class NamedPyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Named() for _ in range(2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        kept: dict[str, Tensor] = {}
        for stage in self.stages:
            x = stage(x, kept)
        return {**kept, "last": x}


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("kind", [Pyramid, NamedPyramid])
def test_what_leaves_a_call_is_read_on(kind: type[nn.Module], verify: bool) -> None:
    model = randomise_batch_norm(kind().double().eval(), 0)
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    fused = reparam.fuse(model, verify=verify)  # a warning would be an error
    assert len(fused.reparam_report.fused) == 4
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-12
