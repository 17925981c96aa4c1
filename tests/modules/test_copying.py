"""A copy shares nothing with its model, and making it leaves the model alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() * self.scale


class CopiesAnew(Scale):
    """Its copies start afresh, and keep a view of their parameter."""

    def __deepcopy__(self, memo: dict[int, Any]) -> CopiesAnew:
        new = CopiesAnew()
        new.scale = copy.deepcopy(self.scale, memo)
        nn.init.ones_(new.scale)
        new.seen = new.scale.detach()
        return new


class UnpacksAnew(Scale):
    """The same when it gets its state."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        nn.init.ones_(self.scale)
        self.seen = self.scale.detach()


@pytest.mark.parametrize("kind", [CopiesAnew, UnpacksAnew])
def test_modules_that_copy_themselves_do_not_reach_the_model(kind: type[Scale]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), kind()).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fused = reparam.fuse(model)
    assert len(fused.reparam_report.fused) == 1
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    there = {tensor.data_ptr() for tensor in model.state_dict().values()}
    last: Any = fused[2]
    assert last.scale.data_ptr() not in there
    assert last.seen.data_ptr() == last.scale.data_ptr()
