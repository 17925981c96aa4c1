"""Save, load, copy and send a fused model to another process."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

import reparam
from tests.support.errors import run
from tests.uses.networks import NETWORKS, SMALL, fused_network
from tests.uses.processes import answer, in_processes


def saved(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    "roundtrip",
    [saved, lambda model: pickle.loads(pickle.dumps(model)), copy.deepcopy],
    ids=["save", "pickle", "deepcopy"],
)
def test_a_copy_computes_the_same_on_its_own(
    name: str, roundtrip: Callable[[nn.Module], nn.Module]
) -> None:
    case = fused_network(name)
    again = roundtrip(case.fused)
    expected = run(case.fused, (case.x,))
    assert torch.equal(run(again, (case.x,)), expected)
    assert str(again.reparam_report) == str(case.fused.reparam_report)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    assert run(again, (case.x,)).abs().max() == 0
    assert torch.equal(run(case.fused, (case.x,)), expected)


@pytest.mark.parametrize("name", SMALL)
def test_a_shallow_copy_computes_the_same(name: str) -> None:
    case = fused_network(name)
    assert torch.equal(run(copy.copy(case.fused), (case.x,)), run(case.fused, (case.x,)))


@pytest.mark.parametrize("name", SMALL)
def test_a_state_dict_goes_round(name: str) -> None:
    case = fused_network(name)
    state = copy.deepcopy(case.fused.state_dict())
    other = reparam.fuse(NETWORKS[name]().eval())
    assert list(other.state_dict()) == list(state)
    assert not torch.equal(run(other, (case.x,)), run(case.fused, (case.x,)))
    other.load_state_dict(state)
    assert torch.equal(run(other, (case.x,)), run(case.fused, (case.x,)))


@pytest.mark.parametrize("name", SMALL)
def test_a_state_dict_loads_into_a_model_fused_on_the_meta_device(name: str) -> None:
    case = fused_network(name)
    with torch.device("meta"):
        empty = NETWORKS[name]().eval()
    fused = reparam.fuse(empty)
    assert all(tensor.is_meta for tensor in fused.state_dict().values())
    fused.load_state_dict(case.fused.state_dict(), assign=True)
    assert torch.equal(run(fused, (case.x,)), run(case.fused, (case.x,)))


@pytest.mark.parametrize("name", SMALL)
def test_fusing_a_fused_model_changes_nothing(name: str) -> None:
    case = fused_network(name)
    twice = reparam.fuse(case.fused)
    assert twice.reparam_report.fused == []
    assert list(twice.state_dict()) == list(case.fused.state_dict())
    assert torch.equal(run(twice, (case.x,)), run(case.fused, (case.x,)))


@pytest.mark.parametrize("name", ["repvgg", "eager"])
def test_a_spawned_process_gets_the_model(name: str) -> None:
    case = fused_network(name)
    (there,) = in_processes(answer, [(case.fused, case.x)])
    assert torch.allclose(torch.tensor(there), run(case.fused, (case.x,)), atol=1e-5)
