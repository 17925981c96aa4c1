"""Scales and mixings of channels cross what only moves positions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.refusals.checking import EXACT, assert_reported, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run

C = 8

CROSSED: dict[str, Callable[[Tensor], Tensor]] = {
    "two axes": lambda x: torch.roll(x, shifts=(-1, -2), dims=(1, 2)),
    "an axis": lambda x: x.roll(1, 1),
    "from the end": lambda x: torch.roll(x, (1,), (-2,)),
    "the batch": lambda x: x.roll(1, 0),
    "windows": lambda x: (
        torch.roll(x, (-1, -1), (1, 2)).view(2, 2, 2, 3, 2, C).permute(0, 1, 3, 2, 4, 5)
    ),
}


class Rolled(nn.Module):
    """A norm, positions that move, and a linear layer over the last axis, the channels."""

    def __init__(self, roll: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.linear, self.roll = nn.BatchNorm2d(C), nn.Linear(C, C), roll

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.relu()).permute(0, 2, 3, 1)
        result: Tensor = self.linear(self.roll(y))
        return result


@pytest.mark.parametrize("how", CROSSED)
def test_a_scale_crosses_positions_that_move_in_a_circle(how: str) -> None:
    model, x = ready(Rolled(CROSSED[how])), torch.randn(2, C, 4, 6, dtype=torch.float64)
    fused = reparam.fuse(model, (x,))
    assert count_operators(fused, (x,)).batch_norms == 0
    assert relative_error(run(fused, (x,)), run(model, (x,))) < EXACT


@pytest.mark.parametrize(
    ("roll", "reason"),
    [
        (lambda x: torch.roll(x, 1, -1), "its channels move in a circle"),
        (lambda x: torch.roll(x, (1, 1), (1, 3)), "its channels move in a circle"),
        (lambda x: x.roll(3), "all axes are rolled as one"),
    ],
)
def test_channels_that_move_in_a_circle_stay(roll: Callable[[Tensor], Tensor], reason: str) -> None:
    model, x = ready(Rolled(roll)), torch.randn(2, C, 4, 6, dtype=torch.float64)
    fused = reparam.fuse(model, (x,))
    place = "roll" if "all" in reason else "linear"
    assert_reported(fused.reparam_report, place, reason)
    assert relative_error(run(fused, (x,)), run(model, (x,))) < EXACT
