"""Pools and paddings let maps of the channels pass: such a map may act before or after them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reparam
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run
from tests.support.randomise import randomise_batch_norm

Spatial = Callable[[Tensor], Tensor]
C = 4


@st.composite
def averages(draw: Any) -> Spatial:
    """Average pools whose taps sum to one at every position."""
    kernel = draw(st.integers(2, 4))
    stride, side = draw(st.integers(1, 3)), draw(st.integers(0, kernel // 2))
    ceil = draw(st.booleans())
    counted = draw(st.booleans()) and not side
    return lambda x: F.avg_pool2d(x, kernel, stride, side, ceil, counted)


@st.composite
def extensions(draw: Any) -> Spatial:
    """Paddings that repeat values of the image, crops, and both at once."""
    mode = draw(st.sampled_from(("reflect", "replicate", "circular", "crop")))
    if mode == "crop":
        sides = [-draw(st.integers(0, 2)) for _ in range(4)]
        return lambda x: F.pad(x, sides)
    sides = [draw(st.integers(-2, 2)) for _ in range(4)]
    return lambda x: F.pad(x, sides, mode)


@st.composite
def zeros(draw: Any) -> Spatial:
    """What sees zeros outside the image: only factors pass."""
    kind = draw(st.sampled_from(("pad", "pool", "divided")))
    if kind == "pad":
        sides = [draw(st.integers(0, 2)) for _ in range(3)]
        return lambda x: F.pad(x, (*sides, 1))
    kernel, ceil = draw(st.integers(2, 4)), draw(st.booleans())
    divisor = draw(st.integers(1, 9)) if kind == "divided" else None
    return lambda x: F.avg_pool2d(x, kernel, 2, 1, ceil, True, divisor)


@st.composite
def interpolations(draw: Any) -> Spatial:
    """Interpolations, whose weights sum to one."""
    mode = draw(st.sampled_from(("nearest", "bilinear", "area", "nearest-exact")))
    factor = draw(st.sampled_from((0.5, 1.5, 2)))
    return lambda x: F.interpolate(x, scale_factor=factor, mode=mode)


class Sandwich(nn.Module):
    """A convolution, a map of the positions, and a scale or a batch norm."""

    def __init__(self, spatial: Spatial, scaled: bool, before: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, 1, bias=not scaled)
        self.norm = nn.BatchNorm2d(C)
        self.gamma = nn.Parameter(torch.rand(C, 1, 1) + 0.5)
        self.spatial, self.scaled, self.before = spatial, scaled, before

    def small(self, x: Tensor) -> Tensor:
        return x * self.gamma if self.scaled else self.norm(x)

    def forward(self, x: Tensor) -> Tensor:
        x = x.sigmoid()  # surely of a floating-point type
        if self.before:
            return self.conv(self.spatial(self.small(x)))
        return self.small(self.spatial(self.conv(x)))


def assert_crosses(model: nn.Module, *, crosses: bool = True) -> None:
    """The small operator joins the convolution exactly, and what lies between stays."""
    model = randomise_batch_norm(model.double().eval(), 0)
    x = torch.randn(2, C, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-12
    before, after = count_operators(model, (x,)), count_operators(fused, (x,))
    small = (before.batch_norms + before.multiplications) - (
        after.batch_norms + after.multiplications
    )
    assert small == crosses, fused.reparam_report
    assert after.macs <= before.macs


@given(st.one_of(averages(), extensions(), interpolations()), st.booleans(), st.booleans())
@settings(max_examples=75)
def test_scales_and_shifts_cross(spatial: Spatial, scaled: bool, before: bool) -> None:
    assert_crosses(Sandwich(spatial, scaled, before))


@given(zeros(), st.booleans())
@settings(max_examples=40)
def test_only_scales_cross_zeros(spatial: Spatial, before: bool) -> None:
    assert_crosses(Sandwich(spatial, True, before))
    assert_crosses(Sandwich(spatial, False, before), crosses=False)
