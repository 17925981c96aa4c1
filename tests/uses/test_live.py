"""Live fused models under the tools that people train with."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam import blocks
from tests.following.moving import moved
from tests.following.test_live_models import Computed, named, training
from tests.models.computed_kernels import C
from tests.models.diverse_branch import DiverseBranch
from tests.support.blocks import ThreeBranches
from tests.support.randomise import randomise_batch_norm
from tests.uses.processes import in_processes, train

BOUND = 1e-12


@pytest.fixture(autouse=True)
def _compiled_afresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def expanded() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
    return reparam.expand(randomise_batch_norm(model.eval(), seed=0), blocks.dbb())


MODELS: dict[str, Callable[[], nn.Module]] = {
    "branches": lambda: randomise_batch_norm(ThreeBranches(6).eval(), seed=0),
    "computed kernels": lambda: randomise_batch_norm(Computed().eval(), seed=0),
    "in training mode": training,
    "expanded": lambda: expanded().train(),
}


def assert_compiled_is_eager(model: nn.Module, *, fullgraph: bool, channels: int = 6) -> None:
    """Asserts the same outputs and gradients, also after an update, and without gradients."""
    eager = reparam.fuse(model.double(), live=True)
    live = deepcopy(eager)
    compiled = torch.compile(live, fullgraph=fullgraph, backend="aot_eager")
    x = torch.randn(4, channels, 9, 9, dtype=torch.float64)
    for seed in range(2):
        outputs = []
        for form in (compiled, eager):
            torch.manual_seed(seed)
            form.zero_grad()
            outputs.append(form(x))
            outputs[-1].square().sum().backward()
        assert torch.allclose(*outputs, rtol=BOUND, atol=BOUND)
        ours, theirs = named(live), named(eager)
        assert ours.keys() == theirs.keys()
        for name, parameter in theirs.items():
            assert (ours[name].grad is None) == (parameter.grad is None), name
            if parameter.grad is not None:
                assert torch.allclose(ours[name].grad, parameter.grad, rtol=1e-10, atol=1e-10)
        live.load_state_dict(moved(eager, seed).state_dict())
    with torch.no_grad():
        live.eval()
        assert torch.allclose(compiled(x), eager.eval()(x), rtol=BOUND, atol=BOUND)


@pytest.mark.parametrize("name", MODELS)
def test_compiled_in_one_graph(name: str) -> None:
    torch.manual_seed(0)
    assert_compiled_is_eager(MODELS[name](), fullgraph=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_where_a_law_looks_at_numbers() -> None:
    """A padding is compared with the bias that it holds, outside of the graphs."""
    torch.manual_seed(0)
    model = randomise_batch_norm(DiverseBranch().eval(), seed=0)
    assert_compiled_is_eager(model, fullgraph=False, channels=C)


def test_a_list_of_a_graph_module_is_compiled() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 6, 1, 1))
            self.norm = nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            kernel = nn.functional.pad(self.weight, [1, 1, 1, 1])
            return self.norm(nn.functional.conv2d(x, kernel, padding=1))

    model: Any = torch.fx.symbolic_trace(Padded().eval())
    assert_compiled_is_eager(randomise_batch_norm(model, seed=0), fullgraph=True)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_two_processes_train_the_branches_as_the_model(tmp_path: Path, mode: str) -> None:
    torch.manual_seed(0)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    model = nn.Sequential(MODELS["computed kernels"](), nn.Conv2d(4, 6, 1), *head)
    model = model.double().train(mode == "train")
    model[0].dropout.p = 0.0
    live = reparam.fuse(model, live=True)
    assert {row.name for row in live.reparam_report.fused} >= {"0.fused_conv"}
    x, sums = torch.randn(2, 6, 9, 9, dtype=torch.float64), []
    for form in (model, live):
        pickled = pickle.dumps(form)
        store = str(tmp_path / f"store{len(sums)}")
        first, second = in_processes(train, [(rank, pickled, x, store) for rank in range(2)])
        assert first == second
        sums.append(dict(zip(dict(form.named_parameters()), first, strict=True)))
    assert sums[0].keys() == sums[1].keys()
    before = {name: float(p.detach().sum()) for name, p in model.named_parameters()}
    for name, value in sums[0].items():
        assert sums[1][name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
    assert sum(sums[1][name] != before[name] for name in before) > len(before) / 2
