"""Padding on one side, a crop on the other, in every mode: torch crops first, then it pads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.support.errors import relative_error, run
from tests.support.randomise import randomise_batch_norm

SIDES = ((-1, 1, 0, 0), (0, 0, 1, -2), (2, -1, -1, 1), (0, 2, -1, 0))


class Padded(nn.Module):
    def __init__(self, sides: tuple[int, ...], mode: str) -> None:
        super().__init__()
        self.sides, self.mode = sides, mode
        self.first, self.last = nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 3)
        self.tap, self.norm = nn.Conv2d(4, 4, 1, dilation=2, bias=False), nn.BatchNorm2d(4)

    def pad(self, x: Tensor) -> Tensor:
        return F.pad(x, self.sides, mode=self.mode)


class BeforeAKernel(Padded):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.last(self.pad(x.sin())))


class BehindAKernel(Padded):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pad(self.norm(self.first(x.sin()))))


class BeforeOneTap(Padded):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.tap(self.pad(x.sin())))


class BeforeTwoBranches(Padded):
    def forward(self, x: Tensor) -> Tensor:
        y = self.pad(x.sin())
        return self.tap(y) + self.norm(self.first(y)) + y


class AroundAKernel(Padded):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.pad(self.first(self.pad(x.sin()))))


KINDS = (BeforeAKernel, BehindAKernel, BeforeOneTap, BeforeTwoBranches, AroundAKernel)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("kind", KINDS)
def test_crops_and_pads(kind: type[Padded], mode: str) -> None:
    for sides in SIDES:
        torch.manual_seed(0)
        model = randomise_batch_norm(kind(sides, mode).double().eval(), 0)
        for verify in (True, False):
            fused = reparam.fuse(model, verify=verify)  # a warning would be an error
            assert fused.reparam_report.fused or kind is AroundAKernel
            for size in (7, 12):
                x = torch.randn(2, 4, size, size + 1, dtype=torch.float64)
                assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-12


def test_scales_cross_what_repeats_what_is_left() -> None:
    """It is no kernel, but takes all channels alike, and its values are values of the image."""
    model = randomise_batch_norm(BehindAKernel((-1, 1, 0, 0), "circular").double().eval(), 0)
    kinds = [type(module) for module in reparam.fuse(model).modules()]
    assert kinds.count(nn.Conv2d) == 3  # one of them is not called
    assert nn.BatchNorm2d not in kinds
