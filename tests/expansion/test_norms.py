"""A norm in every branch: exact in eval mode, with statistics of batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import reparam
from reparam import ReparamError, blocks
from tests.expansion.test_expand import Net, moved, shapes
from tests.refusals.checking import EXACT, ready
from tests.support.errors import relative_error, run


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 6, 9, 8, generator=generator, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("block", [blocks.rep_vgg(), blocks.dbb(), blocks.mobile_one()])
def test_norms_change_nothing_in_eval_mode(block: Any) -> None:
    model, x = ready(Net()), torch.randn(2, 6, 9, 8, dtype=torch.float64)
    expanded = reparam.expand(
        model, block, where=["conv", "down"], norm="each", calibrate=batches()
    )
    assert relative_error(run(expanded, (x,)), run(model, (x,))) < EXACT
    fused = reparam.fuse(moved(expanded))
    assert relative_error(run(fused, (x,)), run(expanded, (x,))) < EXACT
    assert shapes(fused) == shapes(reparam.fuse(model))


def test_norms_have_the_statistics_of_their_branches() -> None:
    model = ready(Net())
    expanded: Any = reparam.expand(
        model, blocks.dbb(), where="conv", norm="each", calibrate=batches()
    )
    values = torch.cat([expanded.conv.branches[1][:-1](x) for x in batches()])
    norm = expanded.conv.branches[1][-1]
    assert torch.allclose(norm.running_mean, values.mean((0, 2, 3)))
    assert torch.allclose(norm.running_var, values.var((0, 2, 3), unbiased=False))
    main = torch.cat([expanded.conv.main[:-1](x) for x in batches()])
    assert torch.allclose(expanded.conv.main[-1].running_mean, main.mean((0, 2, 3)))
    assert all(p.requires_grad for p in expanded.conv.parameters())


def test_norms_need_batches() -> None:
    with pytest.raises(ReparamError, match="needs calibrate"):
        reparam.expand(Net(), blocks.dbb(), norm="each")
    with pytest.raises(ReparamError, match="calibrate has none"):
        reparam.expand(Net(), blocks.dbb(), where="conv", norm="each", calibrate=[])
    with pytest.raises(ReparamError, match="does not run on a batch"):
        reparam.expand(
            Net(), blocks.dbb(), where="conv", norm="each", calibrate=[torch.ones(1, 2, 3, 3)]
        )


def test_batches_without_norms_and_one_tensor_are_mistakes() -> None:
    with pytest.raises(ReparamError, match="pass norm='each' with it"):
        reparam.expand(Net(), blocks.dbb(), calibrate=batches())
    with pytest.raises(ReparamError, match="calibrate is one tensor"):
        reparam.expand(Net(), blocks.dbb(), norm="each", calibrate=torch.ones(2, 6, 9, 8))


def test_batches_of_a_generator_are_taken_once() -> None:
    generator = iter(batches())
    reparam.expand(ready(Net()), blocks.dbb(), where="conv", norm="each", calibrate=generator)
    with pytest.raises(ReparamError, match="calibrate has none"):
        reparam.expand(ready(Net()), blocks.dbb(), where="conv", norm="each", calibrate=generator)


def test_linear_layers_have_no_norm() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    with pytest.raises(ReparamError, match="a norm beside a linear layer"):
        reparam.expand(model, blocks.lora(), norm="each", calibrate=[torch.ones(1, 4)])
