"""What operators do besides returning a value: they draw random numbers, or write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import reparam
from tests.refusals.checking import EXACT, Network, images, ready
from tests.support.errors import relative_error, run

DRAWING: dict[str, Callable[[Any], Tensor]] = {
    "gumbel softmax": lambda m: F.gumbel_softmax(m.code, hard=False),
    "a dropout in training mode": lambda m: F.dropout(m.code, 0.5, True),
    "a dropout of whole channels": lambda m: F.feature_alpha_dropout(m.code[None], 0.5, True)[0],
    "a leaky rectifier": lambda m: F.rrelu(m.code - 1, training=True),
    "noise": lambda m: torch.randn_like(m.code),
    "chance": lambda m: torch.bernoulli(m.code.sigmoid()),
    "a pool at random places": lambda m: F.fractional_max_pool2d(m.grid, 1, output_size=1),
}


@pytest.mark.parametrize("name", DRAWING)
def test_what_is_drawn_is_no_constant(name: str) -> None:
    """Nobody runs the model to see that; without verification the graph alone tells."""
    model = ready(
        Network(
            lambda m, x: m.norm(m.conv(x)) * DRAWING[name](m).reshape(-1, 1, 1),
            conv=torch.nn.Conv2d(4, 4, 1),
            norm=torch.nn.BatchNorm2d(4),
            code=torch.rand(4),
            grid=torch.rand(1, 4, 5, 5),
        )
    )
    x = images()
    fused = reparam.fuse(model, verify=False)
    assert fused.reparam_report.fused
    for seed in range(3):
        results = []
        for form in (model, fused):
            torch.manual_seed(seed)
            results.append(run(form, (x,)))
        assert relative_error(*results) <= EXACT
