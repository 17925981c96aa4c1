"""A rule may be taught for every kind of target, and what is wrong with one is said.

The operators below cannot be traced, or nobody could know them: without their rule each stays.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import reparam
from reparam.rules.registry import Rules
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run
from tests.support.taught import (
    ROUNDING,
    C,
    Network,
    Rescaled,
    custom,
    function_rule,
    method_rule,
    module_rule,
    rescaled,
    traceable,
)


class OtherName(Rescaled):
    """Only built otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.note = "another"


class OtherForward(Rescaled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (1 if x.sum() > 0 else 2)


OPERATIONS: dict[str, tuple[Any, Any, Any]] = {
    "module type": (Rescaled, module_rule, lambda m, x: m.part(x)),
    "function": (rescaled, function_rule, lambda m, x: rescaled(x, m.gamma.exp())),
    "keywords": (
        rescaled,
        function_rule,
        lambda m, x: rescaled(factor=m.gamma.exp(), x=x),
    ),
    "traceable function": (traceable, function_rule, lambda m, x: traceable(x, m.gamma.exp())),
    "method": (
        torch.Tensor.multiply,
        method_rule,
        lambda m, x: x.multiply(m.gamma.exp()[:, None, None]),
    ),
    "custom operator": (custom, function_rule, lambda m, x: custom(x, m.gamma.exp())),
    "packet": (
        torch.ops.reparam_tests.rescaled,
        function_rule,
        lambda m, x: torch.ops.reparam_tests.rescaled(x, m.gamma.exp()),
    ),
    "packet of a custom operator": (
        torch.ops.reparam_tests.rescaled,
        function_rule,
        lambda m, x: custom(x, m.gamma.exp()),
    ),
    "overload": (
        torch.ops.reparam_tests.rescaled.default,
        function_rule,
        lambda m, x: torch.ops.reparam_tests.rescaled(x, m.gamma.exp()),
    ),
    "ATen": (
        torch.ops.aten.ldexp,
        lambda self, other: self.scale(2 ** other.flatten(), axis=-3),
        lambda m, x: torch.ops.aten.ldexp(x, m.gamma[:, None, None]),
    ),
    "torch": (
        torch.ldexp,
        lambda input, other: input.scale(2 ** other.flatten(), axis=-3),
        lambda m, x: torch.ldexp(x, m.gamma[:, None, None]),
    ),
}


def network(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    operate = OPERATIONS[kind][2]
    return Network(operate, Rescaled()).eval(), torch.randn(2, 3, 6, 7)


def assert_fuses(model: Any, x: Tensor, rules: Any) -> None:
    fused = reparam.fuse(model, rules=rules)
    assert count_operators(fused, (x,)).total == 2, fused.reparam_report
    assert relative_error(run(fused, (x,)), run(model, (x,))) < ROUNDING


@pytest.fixture
def registered() -> Iterator[Any]:
    """Registers rules until the test is over."""
    from reparam.rules.registry import forget_rules_but, registered_rules

    before = registered_rules()
    yield reparam.register_rule
    forget_rules_but(before)


@pytest.mark.parametrize("kind", OPERATIONS)
def test_a_rule_for_one_call(kind: str) -> None:
    target, rule, _ = OPERATIONS[kind]
    model, x = network(kind)
    off = reparam.fuse(model, rules={target: None})
    assert off.reparam_report.fused == []
    assert_fuses(model, x, {target: rule})


@pytest.mark.parametrize("kind", sorted(set(OPERATIONS) - {"method"}))
def test_a_registered_rule(kind: str, registered: Any) -> None:
    target, rule, _ = OPERATIONS[kind]
    registered(target)(rule)
    model, x = network(kind)
    assert_fuses(model, x, None)
    off = reparam.fuse(model, rules={target: None})
    assert off.reparam_report.fused == []


class Leaves(fx.Tracer):
    """Leaves what a graph module would hold of a user's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Rescaled) or super().is_leaf_module(m, module_qualified_name)


@pytest.mark.parametrize(
    "kind", sorted(set(OPERATIONS) - {"function", "keywords", "traceable function"})
)
def test_a_graph_module(kind: str) -> None:
    target, rule, _ = OPERATIONS[kind]
    model, x = network(kind)
    graph = fx.GraphModule(model, Leaves().trace(model))
    assert_fuses(graph, x, {target: rule})
    assert isinstance(reparam.fuse(graph, rules={target: rule}), fx.GraphModule)


def test_a_graph_module_with_a_function() -> None:
    model, x = network("function")
    graph = fx.Graph()
    value = graph.call_module("conv", (graph.placeholder("x"),))
    factor = graph.call_method("exp", (graph.get_attr("gamma"),))
    scaled = graph.call_function(rescaled, (value, factor))
    graph.output(graph.call_function(torch.relu, (scaled,)))
    assert_fuses(fx.GraphModule(model, graph).eval(), x, {rescaled: function_rule})


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("custom operator", custom),
        ("custom operator", torch.ops.reparam_tests.rescaled),
        ("packet", torch.ops.reparam_tests.rescaled.default),
        ("torch", torch.ops.aten.ldexp),
        ("torch", torch.ops.aten.ldexp.Tensor),
    ],
)
def test_an_exported_program(kind: str, target: Any) -> None:
    model, x = network(kind)
    rule = OPERATIONS["ATen" if kind == "torch" else kind][1]
    program = torch.export.export(model, (x,))
    assert reparam.plan(program).fused == []
    fused = reparam.fuse(program, rules={target: rule})
    assert len(fused.reparam_report.fused) == 1
    assert relative_error(run(fused.module(), (x,)), run(model, (x,))) < ROUNDING
    off = reparam.plan(program, rules={target: None})
    assert "its rule is switched off for this call" in {row.reason for row in off.refused}


def test_switched_off_for_all_overloads() -> None:
    model, x = Network(lambda m, x: x * 2.0).eval(), torch.randn(1, 3, 6, 7)
    program = torch.export.export(model, (x,))
    assert len(reparam.plan(program).fused) == 1
    off = reparam.plan(program, rules={torch.ops.aten.mul: None})
    assert [row.reason for row in off.refused if row.operator.startswith("mul")] == [
        "its rule is switched off for this call"
    ]
    assert len(reparam.plan(program, rules={torch.ops.aten.mul.Scalar: None}).fused) == 1


# -- Which types a rule is for --------------------------------------------------------------------


def test_a_type_is_met_exactly() -> None:
    x = torch.randn(2, 3, 6, 7)
    for kind, fused in ((Rescaled, 1), (OtherName, 1), (OtherForward, 0)):
        torch.manual_seed(0)
        model = Network(OPERATIONS["module type"][2], kind()).eval()
        result = reparam.fuse(model, rules={Rescaled: module_rule})
        assert len(result.reparam_report.fused) == fused
        assert relative_error(run(result, (x,)), run(model, (x,))) < ROUNDING
    both = {Rescaled: module_rule, OtherName: lambda module, x: reparam.Refusal("mine")}
    model = Network(OPERATIONS["module type"][2], OtherName()).eval()
    assert [row.reason for row in reparam.plan(model, rules=both).refused] == ["mine"]


def test_a_subclass_is_switched_off_with_its_parent() -> None:
    class Renamed(nn.BatchNorm2d):
        pass

    model = nn.Sequential(nn.Conv2d(3, C, 3), Renamed(C)).eval()
    assert len(reparam.plan(model).fused) == 1
    plan = reparam.plan(model, rules={nn.BatchNorm2d: None})
    assert plan.fused == []
    assert "its rule is switched off for this call" in {row.reason for row in plan.refused}


def test_a_module_type_with_a_rule_is_a_leaf() -> None:
    """Also where its forward could be traced; without the rule it is."""

    class Traceable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2.0

    model, seen = nn.Sequential(nn.Conv2d(3, C, 3), Traceable()).eval(), []

    def rule(module: Traceable, x: reparam.AffineConv) -> Any:
        seen.append(type(module))
        return x.scale(2.0)

    (row,) = reparam.plan(model, rules={Traceable: rule}).fused
    assert (row.operators, set(seen)) == ("Conv2d + Traceable", {Traceable})
    (row,) = reparam.plan(model, rules={Traceable: None}).fused
    assert row.operators == "Conv2d + mul"


def test_a_function_is_found_wherever_a_module_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = types.ModuleType("kernels_of_a_user")
    kernels.rescaled = rescaled  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, kernels.__name__, kernels)
    torch.manual_seed(0)
    model = Network(lambda m, x: kernels.rescaled(x, m.gamma)).eval()
    assert_fuses(model, torch.randn(2, 3, 6, 7), {rescaled: function_rule})
    assert kernels.rescaled is rescaled


def test_the_library_itself_has_no_functions_of_its_own() -> None:
    assert list(Rules().functions()) == []
    assert list(Rules({rescaled: function_rule}).functions()) == [rescaled]
    assert list(Rules({rescaled: None}).functions()) == []


# -- What is no target ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (Rescaled.forward, "it is a method of Rescaled: register the module type"),
        (Rescaled().forward, "it is a method of Rescaled"),
        (Rescaled(), "a rule is for all modules of a type: register Rescaled"),
        (torch.autograd.Function.apply, "it is a method of Function"),
        ("conv", "cannot have a rule"),
    ],
)
def test_what_no_call_could_ever_meet_is_no_target(target: Any, said: str) -> None:
    with pytest.raises(reparam.ReparamError, match=said):
        reparam.register_rule(target)
    with pytest.raises(reparam.ReparamError, match=said):
        reparam.plan(nn.Identity().eval(), rules={target: None})


def test_methods_of_tensors_written_in_python_are_targets(registered: Any) -> None:
    registered(torch.Tensor.norm)(lambda *args: NotImplemented)


def test_an_operator_is_registered_once_under_all_its_names(registered: Any) -> None:
    registered(custom)(function_rule)
    with pytest.raises(reparam.ReparamError, match=r"rescaled already has a rule, .*function_rule"):
        registered(torch.ops.reparam_tests.rescaled)


@pytest.mark.parametrize("rule", [3, reparam.Refusal, Rescaled])
def test_a_class_is_no_rule(rule: Any) -> None:
    with pytest.raises(reparam.ReparamError, match="must be a function"):
        reparam.register_rule(Rescaled)(rule)


def test_what_cannot_be_a_key_is_no_target() -> None:
    class Kernel:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(reparam.ReparamError, match="cannot have a rule"):
        reparam.register_rule(Kernel())
