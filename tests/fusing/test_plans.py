"""A plan is a value: carried out again and again it gives the same, and nothing is planned anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import reparam
from reparam.errors import warn
from reparam.rewriting import new_code
from tests.support.errors import relative_error, run
from tests.support.randomise import randomise_batch_norm

C = 4


class Branches(nn.Module):
    """New code: two branches become one convolution; its methods are left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Conv2d(C, C, 3, padding=1)
        self.point = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.dense(x) + self.point(x) + x)


class Twice(nn.Module):
    """One block is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Branches()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


class Apart(nn.Module):
    """Its own code cannot be traced, its parts can."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Branches(), Branches()

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) if x.sum() > 0 else self.second(x)


def chain() -> nn.Module:
    """No new code: a norm after a convolution becomes the identity."""
    return nn.Sequential(nn.Conv2d(C, C, 3), nn.BatchNorm2d(C), nn.ReLU(), Branches())


NETWORKS: list[Callable[[], nn.Module]] = [chain, Branches, Twice, Apart]


def images() -> Tensor:
    return torch.randn(2, C, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=NETWORKS, ids=lambda network: network.__name__)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return randomise_batch_norm(request.param().double().eval(), 0)


def exported(model: nn.Module) -> Any:
    return torch.export.export(model, (images(),))


def forbid_planning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever traces, gathers facts or decides from now on fails."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("planned anew")

    for name in ("fusing.driver.find_parts", "planning.planned_parts.decide"):
        monkeypatch.setattr(f"reparam.{name}", fail)
    for name in ("trace_forward", "recorded_trace", "read_program", "gather", "lift"):
        monkeypatch.setattr(f"reparam.analysis.parts.{name}", fail)


def written(plan: reparam.Plan) -> list[list[Any]]:
    """Everything in the graphs of a plan, and whose code each node is of."""
    return [
        [
            (node.name, node.op, node.target, node.args, node.kwargs, [*node.users], call)
            for node, call in planned.part.trace.caller.items()
        ]
        + [*planned.part.trace.graph.nodes]
        for planned in plan._parts
    ]


def assert_equal(one: Any, two: Any) -> None:
    """Two fused models are the same bit for bit, hold nothing together, and say the same."""
    assert one.reparam_report == two.reparam_report
    first, second = one.state_dict, two.state_dict
    if isinstance(one, nn.Module):
        first, second = first(), second()
        assert [*map(str, one.children())] == [*map(str, two.children())]
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not {t.data_ptr() for t in first.values()} & {t.data_ptr() for t in second.values()}


@pytest.mark.parametrize("verify", [False, True])
def test_a_plan_applied_again_gives_the_same(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, verify: bool
) -> None:
    x = images()
    plan = reparam.plan(model, None if isinstance(model, Apart) else x)
    graphs, expected = written(plan), run(model, (x,))
    forbid_planning(monkeypatch)
    one, two = plan.apply(verify=verify), plan.apply(verify=verify)
    assert_equal(one, two)
    assert one.reparam_report.fused
    assert written(plan) == graphs
    assert relative_error(run(two, (x,)), expected) <= 1e-12
    three = plan.apply(inplace=True, verify=verify)
    assert three is model
    assert_equal(one, three)
    assert torch.equal(run(three, (x,)), run(one, (x,)))
    assert written(plan) == graphs


def test_a_plan_of_a_recorded_graph_applied_again_gives_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = fx.symbolic_trace(randomise_batch_norm(chain().double().eval(), 0))
    plan, code = reparam.plan(model), model.code
    graphs = written(plan)
    forbid_planning(monkeypatch)
    one, two = plan.apply(), plan.apply()
    assert_equal(one, two)
    assert one.code == two.code != code == model.code
    assert_equal(one, plan.apply(inplace=True))
    assert written(plan) == graphs


def test_a_plan_of_a_program_applied_again_gives_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = exported(randomise_batch_norm(chain().double().eval(), 0))
    plan, before = reparam.plan(program), str(program)
    graphs = written(plan)
    forbid_planning(monkeypatch)
    one, two = plan.apply(), plan.apply()
    assert_equal(one, two)
    assert str(one.graph) == str(two.graph)
    assert str(program) == before
    assert written(plan) == graphs


def test_a_plan_applied_again_meets_the_same_obstacles(monkeypatch: pytest.MonkeyPatch) -> None:
    original = new_code.NewCode.__init__

    def write(self: Any, slicer: Any, owner: Any) -> None:
        if owner.path == "0":
            raise new_code.GraftError("its code must stay", [owner])
        original(self, slicer, owner)

    monkeypatch.setattr(new_code.NewCode, "__init__", write)
    model = randomise_batch_norm(nn.Sequential(Branches(), Branches()).double().eval(), 0)
    plan = reparam.plan(model)
    graphs, decided = written(plan), [planned.decision for planned in plan._parts]
    one, two = plan.apply(), plan.apply()
    assert_equal(one, two)
    assert {row.reason for row in one.reparam_report.refused} == {"its code must stay"}
    assert len(one.reparam_report.fused) == 1
    assert len(plan.fused) == 2
    assert written(plan) == graphs
    assert [planned.decision for planned in plan._parts] == decided


def test_a_plan_of_a_model_that_changed_is_refused() -> None:
    plan = reparam.plan(model := chain().eval())
    plan.apply(inplace=True)
    for call in (plan.apply, lambda: plan.to_html("never written")):
        with pytest.raises(reparam.ReparamError, match="plan it again"):
            call()
    assert len(reparam.plan(model).fused) == 0


def test_an_alarm_leaves_a_program_that_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    program = exported(randomise_batch_norm(chain().double().eval(), 0))
    monkeypatch.setattr("reparam.verification.model_check.EXACT_BOUND", -1.0)
    for call in (reparam.fuse, reparam.equalize):
        with pytest.warns(UserWarning, match="the model was left as it is") as caught:
            left: Any = call(program)
        assert caught[0].filename == __file__
        assert list(left.state_dict) == list(program.state_dict)
        assert str(left.graph) == str(program.graph)
        assert torch.equal(run(left.module(), (images(),)), run(program.module(), (images(),)))
        for name, tensor in left.state_dict.items():
            assert tensor.data_ptr() != program.state_dict[name].data_ptr()


class Adapted(nn.Module):
    """A linear layer beside a product of two parameters, which a plan computes as a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(8, 4)
        self.down, self.up = nn.Parameter(torch.rand(2, 8)), nn.Parameter(torch.rand(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + nn.functional.linear(x, self.up @ self.down)


@pytest.mark.parametrize("exported", [False, True], ids=["module", "program"])
@pytest.mark.parametrize("applied_before", [False, True])
def test_weights_that_changed_since_are_the_ones_that_count(
    exported: bool, applied_before: bool
) -> None:
    x = torch.rand(3, 8)
    model: Any = Adapted().eval()
    if exported:
        model = torch.export.export(model, (x,))
    plan = reparam.plan(model)
    if applied_before:
        plan.apply()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    fused = plan.apply()
    assert len(fused.reparam_report.fused) == 1
    expected, actual = [(m.module() if exported else m)(x) for m in (model, fused)]
    assert torch.allclose(actual, expected, rtol=1e-5)


def test_a_caller_without_a_name_is_warned() -> None:
    with pytest.warns(UserWarning, match="said"):
        exec("warn('said')", {"warn": warn})


def test_a_context_in_a_graph_stays() -> None:
    graph, root = fx.Graph(), nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    x = graph.placeholder("x")
    graph.call_function(torch.set_grad_enabled, (False,))
    y = graph.call_module("0", (x,))
    graph.call_function(torch.set_grad_enabled, (True,))
    graph.output(graph.call_module("1", (y,)))
    plan = reparam.plan(fx.GraphModule(root, graph))
    assert not plan.fused
    assert "enters a context" in str(plan)
