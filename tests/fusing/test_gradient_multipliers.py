"""One operator, its gradient multiplied, is trained like its branches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam import ReparamError, blocks
from reparam.expansion import Block, ChannelScale, Kernel, Scale
from tests.refusals.checking import ready
from tests.support.errors import relative_error, run

CSLA = Block(
    "mine",
    [Kernel(), Scale(0.5, trained=False)],
    [Kernel(1), Scale(-1.5, trained=False)],
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(self.conv(x).relu())
        return result


def scaled_at_random(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, ChannelScale):
            module.weight.uniform_(-2, 2)
    return model


@pytest.mark.parametrize("block", [blocks.csla(), CSLA])
def test_gradient_descent_on_one_operator_is_that_on_its_branches(block: Block) -> None:
    torch.manual_seed(0)
    branches = scaled_at_random(reparam.expand(ready(Net()), block))
    factors = reparam.gradient_multipliers(branches)
    fused: Any = reparam.fuse(branches)
    assert factors.keys() == dict(fused.named_parameters()).keys()
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    rate = 0.01
    for _ in range(3):
        for model, scale in ((branches, {}), (fused, factors)):
            model.zero_grad()
            model(x).square().mean().backward()
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter -= rate * parameter.grad * scale.get(name, 1.0)
    assert relative_error(run(fused, (x,)), run(branches, (x,))) < 1e-12


def test_signs_of_gradients_need_the_first_power() -> None:
    torch.manual_seed(0)
    branches = scaled_at_random(reparam.expand(ready(Net()), CSLA))
    factors = reparam.gradient_multipliers(branches, power=1)
    fused: Any = reparam.fuse(branches)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    for model, scale in ((branches, {}), (fused, factors)):
        model(x).square().mean().backward()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter -= 0.01 * parameter.grad.sign() * scale.get(name, 1.0)
    assert relative_error(run(fused, (x,)), run(branches, (x,))) < 1e-12


def test_norms_that_are_trained_are_kept() -> None:
    layers = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
    branches = reparam.expand(ready(nn.Sequential(*layers)), blocks.csla())
    with pytest.raises(ReparamError, match=r"0\.weight is no sum of weights of"):
        reparam.gradient_multipliers(branches)
    factors = reparam.gradient_multipliers(branches, keep=nn.BatchNorm2d)
    fused = reparam.fuse(branches, keep=nn.BatchNorm2d)
    assert {*factors} == {"0.weight", "0.bias"} <= {*dict(fused.named_parameters())}
    assert factors["0.weight"].unique().tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("block", "source"),
    [
        (blocks.dbb(), r"conv\.branches\.1\."),
        (blocks.mobile_one(2), r"conv\.branches\.0\."),
    ],
)
def test_what_is_no_sum_with_constant_factors_is_refused(block: Block, source: str) -> None:
    branches = reparam.expand(ready(Net()), block, where="conv")
    with pytest.raises(ReparamError, match=f"conv.weight is no sum of weights of {source}"):
        reparam.gradient_multipliers(branches)
    with pytest.raises(ReparamError, match="power=3"):
        reparam.gradient_multipliers(branches, power=3)
