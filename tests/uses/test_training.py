"""Train a fused model further: alone, in parallel, and with what depends on the mode."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.support.errors import run
from tests.support.randomise import randomise_batch_norm
from tests.uses.networks import SMALL, fused_network
from tests.uses.processes import in_processes, train


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_is_trained(name: str) -> None:
    case = fused_network(name)
    model = case.fused.train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    F.cross_entropy(model(case.x), torch.tensor([1, 2])).backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []
    optimizer.step()
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert len(moved) > 0.8 * len(before)
    assert not torch.equal(run(model.eval(), (case.x,)), run(fused_network(name).fused, (case.x,)))


@pytest.mark.parametrize("name", ["repvgg", "eager"])
def test_two_processes_train_one_model(name: str, tmp_path: Path) -> None:
    case = fused_network(name)
    store = str(tmp_path / "store")
    pickled = pickle.dumps(case.fused.train())
    arguments = [(rank, pickled, case.x, store) for rank in range(2)]
    first, second = in_processes(train, arguments)
    assert first == pytest.approx(second, rel=1e-6, abs=1e-6)
    assert first != [float(p.detach().double().sum()) for p in case.fused.parameters()]


def replica_of(module: nn.Module, seen: dict[int, nn.Module]) -> nn.Module:
    """What `nn.DataParallel` makes of a module for one device, all parameters doubled."""
    if id(module) in seen:
        return seen[id(module)]
    replica: Any = module._replicate_for_data_parallel()
    seen[id(module)] = replica
    for name, child in module._modules.items():
        replica._modules[name] = None if child is None else replica_of(child, seen)
    for name, parameter in module._parameters.items():
        replica._parameters.pop(name, None)
        setattr(replica, name, None if parameter is None else 2 * parameter.detach())
    return replica


@pytest.mark.parametrize("name", SMALL)
def test_a_replica_runs_on_its_own_parameters(name: str) -> None:
    case = fused_network(name)
    expected = run(case.fused, (case.x,))
    replica = replica_of(case.fused, {})
    with torch.no_grad():
        for parameter in case.fused.parameters():
            parameter.mul_(2)
    doubled = run(case.fused, (case.x,))
    assert torch.equal(run(replica, (case.x,)), doubled)
    assert not torch.equal(doubled, expected)


class Dropped(nn.Module):
    """A functional dropout next to what is fused."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.point = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)) + self.point(x)[:, :, 1:-1, 1:-1]
        y = F.batch_norm(
            y,
            self.norm.running_mean,
            self.norm.running_var,
            self.norm.weight,
            self.norm.bias,
            self.training,
        )
        return F.dropout(y, 0.5, self.training)


def test_code_that_asks_for_the_mode_says_that_it_stays_in_eval_mode() -> None:
    model, x = randomise_batch_norm(Dropped().eval(), 0), torch.randn(2, 3, 7, 7)
    fused = reparam.fuse(model)
    assert fused.reparam_report.fused
    expected = run(fused, (x,))
    fused.train()
    with pytest.warns(UserWarning, match=r"Dropped was fused in eval mode.*stays as in eval mode"):
        assert torch.equal(run(fused, (x,)), expected)
    assert torch.equal(run(fused, (x,)), expected)  # it says so once
    assert torch.equal(run(fused.eval(), (x,)), expected)


def test_code_that_does_not_ask_for_the_mode_is_quiet() -> None:
    case = fused_network("byobnet")
    assert torch.equal(run(case.fused.train(), (case.x,)), run(case.fused.eval(), (case.x,)))
