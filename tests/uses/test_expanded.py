"""Expanded models under the tools that people train with."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import reparam
from reparam import blocks
from tests.refusals.checking import ready
from tests.support.errors import relative_error, run
from tests.uses.processes import in_processes, train


def classifier() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def test_two_processes_train_all_branches(tmp_path: Path) -> None:
    expanded = reparam.expand(classifier(), blocks.dbb(), where="0").train()
    x = torch.randn(2, 3, 6, 6)
    before = [p.detach().double().sum().item() for p in expanded.parameters()]
    pickled = pickle.dumps(expanded)
    ranks = [(rank, pickled, x, str(tmp_path / "store")) for rank in range(2)]
    first, second = in_processes(train, ranks)
    assert first == second
    moved = [a != b for a, b in zip(first, before, strict=True)]
    names = [name for name, _ in expanded.named_parameters()]
    trained = {name for step, name in zip(moved, names, strict=True) if step}
    assert {name for name in names if name.startswith("0.") and "bias" not in name} <= trained


@pytest.mark.parametrize("training", [False, True])
def test_compiled_in_one_graph(training: bool) -> None:
    expanded = reparam.expand(ready(classifier()).float(), blocks.mobile_one(2)).train(training)
    compiled = torch.compile(expanded, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 6, 6)
    state = {name: tensor.clone() for name, tensor in expanded.state_dict().items()}
    result = compiled(x)
    expanded.load_state_dict(state)
    assert torch.allclose(result, expanded(x), atol=1e-5)


def test_stored_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = ready(classifier()), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    expanded = reparam.expand(model, blocks.dbb())
    torch.save(expanded.state_dict(), tmp_path / "weights.pt")
    other = reparam.expand(ready(classifier()), blocks.dbb())
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert relative_error(run(other, (x,)), run(model, (x,))) < 1e-12
