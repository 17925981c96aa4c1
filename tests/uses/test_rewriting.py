"""Fusions that are not affine are made with torch.fx, before `fuse` and after it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx import subgraph_rewriter

import reparam
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run
from tests.support.randomise import randomise_batch_norm

EXACT = 1e-12
fx.wrap("swish")


def swish(x: Tensor) -> Tensor:
    """Stands for a kernel of a user's own."""
    return nn.functional.silu(x)


class Block(nn.Module):
    """Two branches and an activation that is written out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, channels, 3, padding=1)
        self.narrow = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.wide(x) + self.narrow(x))
        return x * torch.sigmoid(x)


def written_out(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def called(x: Tensor) -> Tensor:
    return swish(x)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return randomise_batch_norm(nn.Sequential(Block(4), Block(4)).double().eval(), 0)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 4, 6, 7, dtype=torch.float64)


def kinds(graph: fx.GraphModule) -> list[str]:
    return [getattr(node.target, "__name__", node.op) for node in graph.graph.nodes]


def test_rewritten_before(model: nn.Module, x: Tensor) -> None:
    graph = fx.symbolic_trace(model)
    assert len(subgraph_rewriter.replace_pattern(graph, written_out, called)) == 2
    fused = reparam.fuse(graph)
    assert kinds(fused) == [
        "placeholder", "call_module", "swish", "call_module", "swish", "output",
    ]  # fmt: skip
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT


@pytest.mark.parametrize("whole", [True, False], ids=["network", "block"])
def test_rewritten_after(model: nn.Module, x: Tensor, whole: bool) -> None:
    """A block's own forward is set on the instance, which torch.fx asks only below its root."""
    model = model if whole else model[0]
    graph = fx.symbolic_trace(nn.Sequential(reparam.fuse(model)))
    count = len(subgraph_rewriter.replace_pattern(graph, written_out, called))
    assert count == (2 if whole else 1)
    assert kinds(graph) == ["placeholder", *["call_module", "swish"] * count, "output"]
    assert count_operators(graph, (x,)).affine == count
    assert relative_error(run(graph, (x,)), run(model, (x,))) <= EXACT
