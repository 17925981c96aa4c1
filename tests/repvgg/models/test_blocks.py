"""The block: its three branches, squeeze-and-excitation before and after the ReLU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repvgg import RepVGGBlock
from tests.support.errors import relative_error, run
from tests.support.randomise import randomise_batch_norm


def norm(module: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Batch norm by its definition."""
    assert module.running_mean is not None
    assert module.running_var is not None
    per_channel = (module.running_mean, module.running_var + module.eps, module.weight, module.bias)
    mean, variance, weight, bias = (values[:, None, None] for values in per_channel)
    return (x - mean) / variance.sqrt() * weight + bias


def block_of(**arguments: Any) -> RepVGGBlock:
    torch.manual_seed(1)
    block = RepVGGBlock(32, 32, **arguments).double().eval()
    randomise_batch_norm(block, 1)
    return block


@torch.no_grad()
def branches(block: RepVGGBlock, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    state = block.state_dict()
    dense, one = block.rbr_dense[1], block.rbr_1x1[1]
    assert isinstance(dense, nn.BatchNorm2d)
    assert isinstance(one, nn.BatchNorm2d)
    total = norm(
        dense, F.conv2d(x, state["rbr_dense.conv.weight"], None, stride, 1, groups=groups)
    ) + norm(one, F.conv2d(x, state["rbr_1x1.conv.weight"], None, stride, groups=groups))
    return total if block.rbr_identity is None else total + norm(block.rbr_identity, x)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_is_the_sum_of_its_branches(stride: int, groups: int) -> None:
    block = block_of(stride=stride, groups=groups)
    x = torch.randn(2, 32, 9, 8, dtype=torch.float64)
    expected = branches(block, x, stride, groups).relu()
    assert relative_error(run(block, [x]), expected) < 1e-14


def test_squeeze_and_excitation_stands_before_the_relu() -> None:
    block = block_of(squeeze_excitation=True)
    x = torch.randn(2, 32, 9, 8, dtype=torch.float64)
    total = branches(block, x)
    state = block.state_dict()
    means = total.mean((2, 3), keepdim=True)
    hidden = F.conv2d(means, state["se.down.weight"], state["se.down.bias"]).relu()
    assert hidden.shape == (2, 2, 1, 1)  # 32 channels, reduced 16 times
    factors = F.conv2d(hidden, state["se.up.weight"], state["se.up.bias"]).sigmoid()
    assert relative_error(run(block, [x]), (total * factors).relu()) < 1e-14


def test_squeeze_and_excitation_stands_after_the_relu() -> None:
    block = block_of(post_squeeze_excitation=True)
    x = torch.randn(2, 32, 9, 8, dtype=torch.float64)
    out = branches(block, x).relu()
    state = block.state_dict()
    means = out.mean((2, 3), keepdim=True)
    hidden = F.conv2d(means, state["post_se.down.weight"], state["post_se.down.bias"]).relu()
    assert hidden.shape == (2, 8, 1, 1)  # 32 channels, reduced 4 times
    factors = F.conv2d(hidden, state["post_se.up.weight"], state["post_se.up.bias"]).sigmoid()
    assert relative_error(run(block, [x]), out * factors) < 1e-14


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "stride", "expected"),
    [(8, 8, 1, True), (8, 8, 2, False), (8, 16, 1, False)],
)
def test_only_a_block_that_keeps_the_shape_has_the_identity(
    in_channels: int, out_channels: int, stride: int, expected: bool
) -> None:
    block = RepVGGBlock(in_channels, out_channels, stride=stride)
    assert (block.rbr_identity is not None) is expected
