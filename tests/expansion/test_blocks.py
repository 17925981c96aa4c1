"""Blocks are checked where they are made, and what they do not change is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import reparam
from reparam import ReparamError
from reparam.expansion import Block, Kernel, Pool, Skip
from tests.support.errors import relative_error


def convolution() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)).double().eval()


def test_a_block_has_branches_of_steps() -> None:
    with pytest.raises(ReparamError, match="'mine' has no branches"):
        Block("mine")
    with pytest.raises(ReparamError, match="a branch without steps"):
        Block("mine", [])
    with pytest.raises(ReparamError, match="a sequence of Kernel, Pool, Scale and Skip, not 3"):
        Block("mine", [Kernel(), 3])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (Block("mine", [Kernel(), Pool()]), "two kernels of several taps in a row"),
        (Block("mine", [Kernel(5)]), "does not fit into one of"),
        (Block("mine", [Kernel((1, 1, 3))]), "a kernel of 3 axes beside one of 2"),
        (Block("mine", [Kernel(1, channels=7)]), "end it with a Kernel"),
    ],
)
def test_branches_that_are_none_for_a_layer_say_why(block: Block, reason: str) -> None:
    with pytest.raises(ReparamError, match=reason):
        reparam.expand(convolution(), block)


def test_the_input_is_left_out_where_it_cannot_be_added() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1)).eval()
    block = Block("mine", [Kernel(1)], [Skip()])
    (row,) = reparam.expand(model, block).reparam_report.expanded
    assert row.branches == 2


def test_copies_without_factors_train_like_one_layer_with_larger_steps() -> None:
    model: Any = convolution()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    copies: Any = reparam.expand(model, Block("copies", [Kernel()], [Kernel()]), where="0")
    for network, rate in ((model, 0.3), (copies, 0.1)):
        optimizer = torch.optim.SGD([p for p in network.parameters() if p.dim() > 1], rate)
        for _ in range(4):
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()
    assert relative_error(copies(x).detach(), model(x).detach()) < 1e-12
