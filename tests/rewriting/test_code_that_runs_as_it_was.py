"""Code that an option or a method goes on running finds all its parts as it needs them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.support.errors import relative_error
from tests.support.randomise import randomise_batch_norm

ROWS = torch.randn(2, 1, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 4, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class NormActivation(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class TwoBranches(nn.Module):
    """Its code goes to its caller's for one branch; of the other a part would have new code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(4, 2, 3, padding=1), NormActivation(2)
        self.point = nn.Conv1d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.norm(self.conv(input=x)), self.point(x)], 1)


class WithOption(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.branches = nn.Conv1d(1, 4, 1), TwoBranches()

    def forward(self, x: Tensor, flag: bool = False) -> Tensor:
        result: Tensor = self.branches(self.first(x))
        return result


def test_a_part_of_a_block_that_an_option_runs_has_no_new_code_of_its_own() -> None:
    torch.manual_seed(0)
    model = randomise_batch_norm(WithOption().double().eval(), 0)
    fused = reparam.fuse(model)
    assert len(fused.reparam_report.fused) >= 2
    with torch.no_grad():
        for options in ({}, {"flag": True}):
            assert relative_error(fused(ROWS, **options), model(ROWS, **options)) <= 1e-12


class Dropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.2, self.training)


class WithMethods(nn.Module):
    """Nothing is left of a part in forward, nobody reads another one, and a method calls both."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.drop = nn.Parameter(torch.randn(4, 1, 1)), Dropping()
        self.unread, self.head = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)

    def forward_features(self, x: Tensor) -> Tensor:
        x = x * (self.scale * self.scale)
        y: Tensor = self.drop(x)
        self.unread(x)
        return y

    def forward(self, x: Tensor) -> Any:
        x = x * (self.scale * self.scale)
        y = self.drop(x)
        self.unread(x)
        return self.head(y)


def test_a_part_of_which_nothing_is_left_stays_for_methods() -> None:
    torch.manual_seed(0)
    model = WithMethods().double().eval()
    fused = reparam.fuse(model)
    assert len(fused.reparam_report.fused) == 1
    with torch.no_grad():
        assert relative_error(fused(IMAGE), model(IMAGE)) <= 1e-12
        features = [m.forward_features(IMAGE) for m in (fused, model)]
    assert relative_error(*features) <= 1e-12
