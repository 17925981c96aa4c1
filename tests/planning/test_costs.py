"""What must not rise: multiply-adds, memory, time, or what a function says."""

import copy
import re
from collections.abc import Callable
from math import inf, nan
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam import Operator, ReparamError
from reparam.planning.cost_functions import latency
from tests.random_networks.calls import Call
from tests.random_networks.checking import observe, ready
from tests.random_networks.growing import random_program
from tests.support.errors import FLOAT64_BOUND, relative_error
from tests.support.randomise import randomise_batch_norm


def pooled(channels: int = 4) -> nn.Module:
    """Fused it is one 4x4 convolution of stride 2: fewer multiply-adds, but more weights."""
    layers = nn.Conv2d(channels, channels, 3, padding=1), nn.AvgPool2d(2)
    return nn.Sequential(*layers, nn.ReLU()).eval()


def branches() -> nn.Module:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.narrow = nn.Conv2d(4, 4, 1, bias=False)
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.bn(self.wide(x) + self.narrow(x)))

    return randomise_batch_norm(Branches().eval(), 0)


def seen(model: nn.Module, *inputs: Tensor) -> list[Operator]:
    operators: list[Operator] = []

    def note(operator: Operator) -> float:
        operators.append(operator)
        return operator.multiply_adds

    reparam.plan(model, inputs or None, cost=note)
    return operators


def test_memory_refuses_what_multiply_adds_accept() -> None:
    model = pooled()
    assert len(reparam.plan(model).fused) == 1
    plan = reparam.plan(model, cost="memory")
    assert not plan.fused
    assert "numbers in memory" in plan.refused[0].reason


def test_memory_counts_what_is_written_where_sizes_are_known() -> None:
    model = pooled()
    assert len(reparam.plan(model, torch.zeros(1, 4, 32, 32), cost="memory").fused) == 1
    assert not reparam.plan(model, torch.zeros(1, 4, 2, 2), cost="memory").fused


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("known", [True, False], ids=["sizes", "no sizes"])
def test_random_networks_planned_by_memory(seed: int, known: bool) -> None:
    program = random_program(seed)
    model, inputs = ready(program), program.calls(torch.float64)[0]
    fused = reparam.fuse(model, inputs if known else None, cost="memory")
    assert all(row.cost[1] <= row.cost[0] for row in fused.reparam_report.fused)
    exact, result = (observe(m, Call(inputs), seed) for m in (model, fused))
    assert relative_error(result, exact) < FLOAT64_BOUND


def test_a_function_sees_the_operators() -> None:
    model, x = branches(), torch.zeros(2, 4, 6, 5)
    found = {operator.name: operator for operator in seen(model, x) if not operator.planned}
    wide = next(one for one in seen(model, x) if one.kernel_size == (3, 3) and not one.planned)
    assert (wide.kind, wide.in_channels, wide.out_channels, wide.groups) == ("conv", 4, 4, 1)
    assert wide.multiply_adds == 4 * 4 * 9 * 2 * 6 * 5
    assert (wide.weights, wide.values) == (4 * 4 * 9, 2 * 4 * 6 * 5)
    assert wide.input_shapes == ((2, 4, 6, 5),)
    assert wide.dtype == torch.float32
    assert found["BatchNorm2d"].kind == "other"
    assert found["BatchNorm2d"].weights == 16
    assert found["add"].input_shapes == ((2, 4, 6, 5),) * 2
    planned = [one for one in seen(model, x) if one.planned]
    assert {(one.name, one.kind) for one in planned} == {("Conv2d", "conv")}
    assert max(one.weights for one in planned) == 4 * 4 * 9 + 4


def test_what_a_function_sees_can_be_run() -> None:
    model, x = branches(), torch.zeros(2, 4, 6, 5)
    for operator in seen(model, x):
        assert operator.run is not None
        assert operator.run().shape == (2, 4, 6, 5)


@pytest.fixture
def equal_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operator takes the same time, so that nothing depends on how busy the machine is."""
    monkeypatch.setattr("reparam.planning.cost_functions._time", lambda operator: 10.0)


def test_a_planned_operator_reads_what_the_first_of_its_chain_read(equal_times: None) -> None:
    """The new convolution stands where the second one was, which read more channels."""
    first, second = nn.Conv2d(4, 16, 1, 2, bias=False), nn.Conv2d(16, 4, 3, padding=1)
    model, x = nn.Sequential(first, second, nn.ReLU()).eval(), torch.zeros(2, 4, 12, 10)
    both = [one for one in seen(model, x) if one.planned and one.kernel_size == (3, 3)]
    both = [one for one in both if one.in_channels == 4]
    assert both
    for operator in both:
        assert operator.input_shapes == ((2, 4, 12, 10),)
        assert operator.run is not None
        assert operator.run().shape == model(x).shape
    assert len(reparam.plan(model, x, cost="latency").fused) == 1


def test_without_inputs_a_function_sees_no_sizes() -> None:
    operators = seen(branches())
    assert not any(one.values or one.input_shapes or one.run for one in operators)


def test_a_function_may_forbid_an_operator() -> None:
    def no_large_kernels(operator: Operator) -> float:
        return inf if operator.planned and max(operator.kernel_size, default=1) > 1 else 1.0

    plan = reparam.plan(branches(), cost=no_large_kernels)
    assert not plan.fused
    assert any("no_large_kernels" in row.reason for row in plan.refused)


def test_operators_do_not_rise_whatever_a_function_says() -> None:
    """A crop is an operator of its own; that a convolution were free is no reason for it."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.ZeroPad2d((1, 0, 0, 0)), nn.ReLU())
    plan = reparam.plan(model.eval(), cost=lambda operator: 0.0)
    assert all(row.counts[1] <= row.counts[0] for row in plan.fused)


@pytest.mark.parametrize("cost", ["macs", "memory", "latency", lambda operator: operator.weights])
def test_every_cost_gives_what_the_model_gives(cost: Any) -> None:
    model, x = branches(), torch.randn(2, 4, 6, 5)
    fused = reparam.fuse(model, x, cost=cost)
    assert max(reparam.verify(model, fused, x).fused) < 1e-6


def test_the_report_shows_the_cost() -> None:
    text = str(reparam.plan(branches(), cost="memory"))
    assert "numbers in memory" in text
    assert "multiply-adds" in text
    assert "numbers in memory" in str(reparam.fuse(branches(), cost="memory").reparam_report)
    row = reparam.plan(branches(), cost="memory").fused[0]
    assert row.cost == (4 * 4 * 9 + 4 * 4 + 16, 4 * 4 * 9 + 4)


def test_latency_is_by_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planned operator that takes longer than what dies is refused, a faster one is taken."""
    slower: dict[str, Callable[[Operator], bool]] = {
        "never": lambda operator: False,
        "planned": lambda operator: operator.planned,
    }
    fused = {}
    for name, slow in slower.items():
        monkeypatch.setattr(
            "reparam.planning.cost_functions._time",
            lambda one, slow=slow: 100.0 if slow(one) else 10.0,
        )
        fused[name] = len(reparam.plan(pooled(), torch.zeros(1, 4, 8, 8), cost="latency").fused)
    assert fused == {"never": 1, "planned": 0}


def test_each_operator_is_measured_once() -> None:
    measure = latency().function
    model, x = branches(), torch.zeros(1, 4, 8, 8)
    times = [{operator: measure(operator) for operator in seen(model, x)} for _ in range(2)]
    assert times[0] == times[1]
    assert all(0 < time < inf for time in times[0].values())


def test_what_cannot_be_run_is_never_worth_it() -> None:
    def broken() -> None:
        raise ValueError

    measure = latency().function
    there = Operator("a", "other", 0.0, 0, 0.0, run=broken)
    planned = Operator("b", "other", 0.0, 0, 0.0, run=broken, planned=True)
    assert (measure(there), measure(planned)) == (0.0, inf)


def test_measuring_leaves_the_model_as_it_was() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return 2 * x

    model = nn.Sequential(nn.Conv2d(3, 3, 1), Counting(), nn.BatchNorm2d(3)).eval()
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    reparam.plan(
        model,
        torch.zeros(1, 3, 4, 4),
        cost="latency",
        rules={Counting: lambda module, x: x.scale(torch.tensor([2.0]))},
    )
    assert model[1].calls == 0
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_an_exported_program_knows_its_sizes(equal_times: None) -> None:
    program = torch.export.export(branches(), (torch.zeros(2, 4, 6, 5),))
    assert len(reparam.plan(program, cost="latency").fused) == 1


def test_parts_that_are_traced_apart_are_weighed_by_multiply_adds() -> None:
    class Eager(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.other = branches(), branches()

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x) if float(x.sum()) > 0 else self.other(-x)  # which gets no inputs

    x = torch.ones(1, 4, 8, 8)
    with pytest.raises(ReparamError, match="pass example_inputs"):
        reparam.plan(Eager().eval(), cost="latency")
    plan = reparam.plan(Eager().eval(), x, cost="latency")
    assert "other" in {row.place.partition(".")[0] for row in plan.fused}
    assert any("traced apart" in note for note in plan.report.notes)


@pytest.mark.parametrize(
    ("cost", "problem"),
    [
        ("flops", "'flops' is not known; give one of 'macs', 'memory', 'latency', or a function"),
        (3, "cost=3 is not known"),
        (None, "cost=None is not known"),
        (lambda operator: "dear", "gives no number for Operator"),
        (lambda operator: nan, "gives NaN for Operator"),
        (lambda operator: "dear" if operator.planned else 1, "gives no number for Operator"),
        (lambda operator: nan if operator.planned else 1, "gives NaN for Operator"),
        (lambda operator: 1 / 0, "ZeroDivisionError"),
        (lambda operator: 1 / (not operator.planned), "ZeroDivisionError"),
    ],
)
def test_what_is_no_cost(cost: Any, problem: str) -> None:
    with pytest.raises(ReparamError, match=re.escape(problem)):
        reparam.plan(branches(), cost=cost)


def test_latency_without_sizes() -> None:
    with pytest.raises(ReparamError, match="pass example_inputs"):
        reparam.plan(branches(), cost="latency")
