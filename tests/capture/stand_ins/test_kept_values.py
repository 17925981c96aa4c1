"""Tensors that a model keeps without registering them are constants like buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.refusals.checking import EXACT, Network, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run

C = 4
Forward = Callable[[Any, Tensor], Any]


class Shifted(nn.Module):
    """Adds what it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = torch.randn(C, 1, 1, dtype=torch.float64)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return x * scale + self.plain.abs()


def network(forward: Forward) -> nn.Module:
    parts = {"conv": nn.Conv2d(C, C, 3), "norm": nn.BatchNorm2d(C), "shifted": Shifted()}
    model = ready(Network(forward, **parts))
    model.plain = torch.rand(C, 1, 1, dtype=torch.float64) + 0.5
    return model


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.norm(torch.mul(m.conv(x), torch.sigmoid(m.plain))),
        lambda m, x: m.norm(m.conv(x) * m.plain.sigmoid()),
        lambda m, x: m.norm(torch.ops.aten.add.Tensor(m.conv(x), m.plain)),
        lambda m, x: m.norm(m.conv(x) * (m.plain + 1) / m.plain[0]),
        lambda m, x: m.norm(m.shifted(m.conv(x), m.plain.exp())),
        lambda m, x: m.norm(m.shifted(m.conv(x), m.plain) + torch.stack([m.plain] * 2).sum(0)),
        lambda m, x: m.norm(m.conv(x) * (m.plain if m.plain.sum() > 0 else 1)),
    ],
)
def test_what_is_computed_of_a_plain_attribute_is_a_constant(forward: Forward) -> None:
    model, x = network(forward), images(C)
    held = dict(vars(model)), dict(vars(model.shifted))
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).total == 1, fused.reparam_report
    assert all(vars(model)[name] is value for name, value in held[0].items())
    assert all(vars(model.shifted)[name] is value for name, value in held[1].items())


def written(m: Any, x: Tensor) -> Tensor:
    m.plain[0] = m.plain[1]
    return m.norm(m.conv(x) * m.plain.exp())


def replaced(m: Any, x: Tensor) -> Tensor:
    m.plain = m.plain.exp().log()
    return m.norm(m.conv(x) * m.plain.exp())


@pytest.mark.parametrize("forward", [written, replaced], ids=lambda forward: forward.__name__)
def test_one_that_a_forward_changes_is_none(forward: Forward) -> None:
    model, x = network(forward), images(C)
    before = model.plain.clone()
    fused = reparam.fuse(model)
    assert torch.equal(model.plain, before)
    for _ in range(2):
        assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert torch.equal(fused.plain, model.plain)
    assert fused.reparam_report.refused
