"""Fusions that would be right in the middle of an image and wrong at its border."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.refusals.checking import (
    EXACT,
    Network,
    assert_refused,
    differs,
    images,
    one_convolution,
    ready,
)
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run

OTHER_MODES = ("reflect", "circular", "replicate")


def wide_pair(**second: Any) -> nn.Module:
    """Two kernels with so many channels between that one would be cheaper."""
    return ready(
        nn.Sequential(nn.Conv2d(4, 16, 3, bias=False), nn.Conv2d(16, 4, 3, padding=1, **second))
    )


def test_zero_padding_after_a_bias() -> None:
    model = ready(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)))
    naive = one_convolution(model, 4, 3, (1, 1))
    assert_refused(model, images(), "1", "zero padding after a bias", naive=naive)


def test_zero_padding_after_a_batch_norm() -> None:
    model = ready(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)))
    naive = one_convolution(model, 4, 3, (1, 1))
    assert_refused(model, images(), "1", "zero padding after a bias", naive=naive)


def test_zero_padding_after_a_shift() -> None:
    """The mean of an image, subtracted before a padded convolution, is none of its bias."""
    model = ready(
        Network(
            lambda self, x: self.conv(x - self.mean),
            conv=nn.Conv2d(4, 4, 3, padding=1),
            mean=torch.randn(4, 1, 1),
        )
    )
    naive = one_convolution(model, 4, 3, (1, 1))
    assert_refused(model, images(), "conv", "zero padding after a bias", naive=naive)


def test_zero_padding_between_two_kernels() -> None:
    model = wide_pair()
    naive = one_convolution(model, 4, 5, (1, 1))
    assert_refused(model, images(), "1", "zero padding between two kernels", naive=naive)


def test_zero_padding_after_a_crop() -> None:
    model = ready(nn.Sequential(nn.ZeroPad2d(-1), nn.Conv2d(4, 4, 3, padding=1)))
    naive = one_convolution(model, 4, 3, (0, 0))
    assert_refused(model, images(), "1", "zero padding after a crop", naive=naive)


def test_a_pool_that_pads_after_a_bias() -> None:
    model = ready(nn.Sequential(nn.Conv2d(4, 4, 1), nn.AvgPool2d(3, 1, 1)))
    naive = one_convolution(model, 4, 3, (1, 1))
    assert_refused(model, images(), "1", "zero padding after a bias", naive=naive)


@pytest.mark.parametrize("mode", OTHER_MODES)
def test_other_padding_after_a_kernel(mode: str) -> None:
    model = wide_pair(padding_mode=mode)
    naive = one_convolution(model, 4, 5, (1, 1), mode=mode)
    assert_refused(model, images(), "1", f"{mode} padding after a kernel", naive=naive)


@pytest.mark.parametrize("mode", OTHER_MODES)
def test_zero_padding_after_other_padding(mode: str) -> None:
    first = nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode, bias=False)
    model = ready(nn.Sequential(first, nn.Conv2d(4, 4, 1, padding=1, bias=False)))
    naive = one_convolution(model, 4, 3, (2, 2), mode=mode)
    assert_refused(model, images(), "1", f"zero padding after {mode} padding", naive=naive)


@pytest.mark.parametrize("mode", OTHER_MODES)
def test_padding_modes_that_differ_between_branches(mode: str) -> None:
    model = ready(
        Network(
            lambda self, x: self.a(x) + self.b(x),
            a=nn.Conv2d(4, 4, 3, padding=1),
            b=nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode),
        )
    )
    naive = one_convolution(model, 4, 3, (1, 1))
    assert_refused(model, images(), "add", "different padding modes", naive=naive)


def test_padding_modes_that_differ_between_axes() -> None:
    def wraps_columns(self: Any, x: Tensor) -> Tensor:
        return self.conv(F.pad(self.point(x), (1, 1, 0, 0), mode="circular"))

    model = ready(
        Network(
            wraps_columns,
            point=nn.Conv2d(4, 4, 1, bias=False),
            conv=nn.Conv2d(4, 4, 3, padding=(1, 0), bias=False),
        )
    )
    naive = one_convolution(model, 4, 3, (1, 1))
    assert_refused(model, images(), "conv", "cannot pad its axes differently", naive=naive)


def test_padding_with_a_value() -> None:
    model = ready(
        nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.ConstantPad2d(1, 0.5), nn.Conv2d(4, 4, 3))
    )
    naive = one_convolution(model, 4, 3, (1, 1))
    reason = "padding with a value that is not the constant of what it pads"
    assert_refused(model, images(), "1", reason, naive=naive)


def test_padding_of_the_input_with_a_value() -> None:
    model = ready(nn.Sequential(nn.ConstantPad2d(1, 0.5), nn.Conv2d(4, 4, 3)))
    naive = one_convolution(model, 4, 3, (1, 1))
    assert_refused(model, images(), "1", "padding with a value", naive=naive)


def test_the_divisor_of_a_pool_may_change_at_the_border() -> None:
    pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    model = ready(nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), pool))
    naive = one_convolution(model, 4, 3, (1, 1))
    assert_refused(model, images(), "1", "count_include_pad=False", naive=naive)


def test_windows_may_hang_over_the_border() -> None:
    pool = nn.AvgPool2d(3, 2, ceil_mode=True)
    model = ready(nn.Sequential(nn.Conv2d(4, 4, 1), pool))
    naive = one_convolution(model, 4, 3, (0, 0), stride=2)
    assert_refused(model, images(size=6), "1", "ceil_mode", naive=naive)


def test_a_transposed_convolution_after_a_bias() -> None:
    """Far from the border every output sees equally many inputs; at the border it does not."""
    up = nn.ConvTranspose2d(4, 4, 3, padding=1)
    model = ready(nn.Sequential(nn.Conv2d(4, 4, 1), up))
    naive = one_convolution(model, 4, 3, (1, 1))
    assert_refused(model, images(), "1", "a transposed convolution after a bias", naive=naive)


def test_a_padded_convolution_after_a_transposed_one() -> None:
    up = nn.ConvTranspose2d(4, 16, 3, padding=1, bias=False)
    model = ready(nn.Sequential(up, nn.Conv2d(16, 4, 3, padding=1)))
    naive = one_convolution(model, 4, 5, (2, 2))
    assert_refused(model, images(), "1", "after a transposed convolution", naive=naive)


@pytest.mark.parametrize(("kernel", "fits"), [((1, 7), True), ((3, 7), False)])
def test_each_axis_is_judged_by_itself(kernel: tuple[int, int], fits: bool) -> None:
    """1×7 then 7×1, each padded along its own axis only, is one 7×7; one row more and it is not."""
    rows, columns = kernel
    first = nn.Conv2d(4, 64, kernel, padding=(rows // 2, columns // 2), bias=False)
    model = ready(nn.Sequential(first, nn.Conv2d(64, 4, (7, 1), padding=(3, 0))))
    fused, x = reparam.fuse(model), images(size=11)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).convolutions == (1 if fits else 2)
    naive = one_convolution(model, 4, 9, (4, 4)) if not fits else fused
    assert differs(naive, model, x) is not fits


def test_causal_chains_fit() -> None:
    """Padded on the left by all that they reach, two bias-free kernels are one."""

    def causal(self: Any, x: Tensor) -> Tensor:
        return self.b(F.pad(self.a(F.pad(x, (2, 0))), (4, 0)))

    model = ready(
        Network(causal, a=nn.Conv1d(4, 32, 3, bias=False), b=nn.Conv1d(32, 4, 3, dilation=2))
    )
    x = torch.randn(2, 4, 9, dtype=torch.float64)
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).convolutions == 1
