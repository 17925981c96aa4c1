"""A rule may be taught for every kind of target, and what is wrong with one is said.

The operators below cannot be traced, or nobody could know them: without their rule each stays.
"""

from __future__ import annotations

import functools
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

C = 4
ROUNDING = 1e-5


def rescaled(x: Tensor, factor: Tensor) -> Tensor:
    """A plain function, as a kernel of a user's own."""
    if x.sum() > 1e9:
        raise ValueError("too bright")
    return x * factor[:, None, None]


def traceable(x: Tensor, factor: Tensor) -> Tensor:
    return torch.einsum("nchw,c->nchw", x, factor)


@torch.library.custom_op("reparam_tests::rescaled", mutates_args=())
def custom(x: Tensor, factor: Tensor) -> Tensor:
    return x * factor[:, None, None]


@custom.register_fake
def _(x: Tensor, factor: Tensor) -> Tensor:
    return torch.empty_like(x)


class Rescaled(nn.Module):
    """A module whose forward cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(C))

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            raise ValueError("too bright")
        return x * self.gamma.exp()[:, None, None]


class OtherName(Rescaled):
    """Only built otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.note = "another"


class OtherForward(Rescaled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (1 if x.sum() > 0 else 2)


class Network(nn.Module):
    """A convolution, an operator and an activation."""

    def __init__(self, operate: Any, part: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, C, 3)
        self.gamma = nn.Parameter(torch.rand(C))
        self.part = part
        self.operate = operate

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.operate(self, self.conv(x)))


def module_rule(module: Rescaled, x: reparam.AffineConv) -> Any:
    return x.scale(module.gamma.exp())


def function_rule(x: reparam.AffineConv, factor: Tensor) -> Any:
    return x.scale(factor, axis=-3)


def method_rule(input: reparam.AffineConv, other: Tensor) -> Any:
    return input.scale(other.flatten(), axis=-3)


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


@pytest.mark.parametrize("kind", set(OPERATIONS) - {"method"})
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


@pytest.mark.parametrize("kind", set(OPERATIONS) - {"function", "keywords", "traceable function"})
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
    assert (row.operators, seen) == ("Conv2d + Traceable", [Traceable])
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


# -- What a rule may and may not do ---------------------------------------------------------------


def fused_by(rule: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    model = Network(OPERATIONS["module type"][2], Rescaled()).eval()
    return reparam.fuse(model, rules={Rescaled: rule}, **options)


def test_what_a_rule_computes_is_exact() -> None:
    """It sees the parameters in float64, and the new ones have the type of the old."""
    seen = []

    def rule(module: Rescaled, x: reparam.AffineConv) -> Any:
        seen.append(module.gamma.dtype)
        return module_rule(module, x)

    fused = fused_by(rule)
    (row,) = fused.reparam_report.fused
    assert row.error is not None
    assert row.error < 1e-14
    assert seen == [torch.float64]
    assert {parameter.dtype for parameter in fused.parameters()} == {torch.float32}
    assert next(fused.get_submodule(row.name).parameters()).requires_grad


def test_parameters_of_different_types_are_refused() -> None:
    class Mixed(Rescaled):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("narrow", torch.ones(1, dtype=torch.float16))

    model = nn.Sequential(nn.Conv2d(3, C, 3), Mixed()).eval()
    plan = reparam.plan(model, rules={Mixed: module_rule})
    assert ["different dtypes" in row.reason for row in plan.refused] == [True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors_that_a_rule_makes_have_the_type_of_the_model(dtype: torch.dtype) -> None:
    class Halved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 2 if x.dim() == 4 else x

    rules = {
        Halved: lambda module, x: x.scale(torch.full((C,), 0.5)),
        Rescaled: lambda module, x: module_rule(module, x.scale(torch.ones(C))),
    }
    model = nn.Sequential(nn.Conv2d(3, C, 3), Halved(), Rescaled()).eval().to(dtype)
    fused = reparam.fuse(model, rules=rules)
    assert [row.counts for row in fused.reparam_report.fused] == [(3, 1)]
    assert {parameter.dtype for parameter in fused.parameters()} == {dtype}


def test_two_inputs() -> None:
    class Weighted(Rescaled):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return super().forward(x) + y

    class Two(Network):
        def forward(self, x: Tensor) -> Tensor:
            return self.part(self.conv(x), self.other(x))

    model = Two(None, Weighted())
    model.other = nn.Conv2d(3, C, 3)
    rule = {Weighted: lambda module, x, y: x.scale(module.gamma.exp()).plus(y)}
    x = torch.randn(2, 3, 6, 7)
    fused = reparam.fuse(model.eval(), rules=rule)
    assert count_operators(fused, (x,)).total == 1
    assert relative_error(run(fused, (x,)), run(model, (x,))) < ROUNDING


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (None, r"returned None \(is a return missing\?\)"),
        (torch.ones(4), r"returned a Tensor of shape \(4,\), not what happens to x"),
        (nn.Conv2d(4, 4, 1), "returned a module, Conv2d, not what happens to x"),
        (3, r"returned 3 \(int\)"),
        (reparam.Refusal, r"returned <class .*Refusal'> \(type\)"),
    ],
)
def test_what_a_rule_returns_is_said(result: Any, said: str) -> None:
    def mistaken(module: Rescaled, x: reparam.AffineConv) -> Any:
        return result

    with pytest.raises(reparam.ReparamError, match=said) as caught:
        fused_by(mistaken)
    text = str(caught.value)
    assert text.startswith("the rule tests.test_registry.")
    assert ".mistaken of Rescaled, at part, " in text
    assert "must return a form, such as x.scale(...), or a reparam.Refusal" in text


def test_a_form_over_nothing_that_flows_in() -> None:
    kept = []

    def hoarding(module: Rescaled, x: reparam.AffineConv) -> Any:
        kept.append(x)
        return kept[0].scale(2.0)

    model = nn.Sequential(nn.Conv2d(3, C, 3), Rescaled(), Rescaled()).eval()
    with pytest.raises(reparam.ReparamError, match=r"hoarding .* at 2, returned a form over"):
        reparam.plan(model, rules={Rescaled: hoarding})


@pytest.mark.parametrize("inplace", [False, True])
def test_a_rule_that_raises_leaves_the_model_alone(inplace: bool) -> None:
    class OfRuleError(Exception):
        pass

    def broken(module: Rescaled, x: reparam.AffineConv) -> Any:
        module.note = "was here"
        module.gamma.mul_(2)
        raise OfRuleError("no idea")

    torch.manual_seed(0)
    model = Network(OPERATIONS["module type"][2], Rescaled()).eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parts, attributes = dict(model.named_modules()), dict(vars(model.part))
    with pytest.raises(
        reparam.ReparamError, match=r"broken of Rescaled, at part, raised OfRuleError: no idea"
    ) as caught:
        reparam.fuse(model, rules={Rescaled: broken}, inplace=inplace)
    assert isinstance(caught.value.__cause__, OfRuleError)
    assert dict(model.named_modules()) == parts
    assert vars(model.part) == attributes
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (lambda m, x: x.convolve(m.gamma), "raised"),
        (lambda m, x: x.convolve(torch.rand(4, 4, 1, 1), m.gamma[:3]), r"bias of shape \(3,\)"),
        (lambda m, x: x.scale(x), "raised TypeError"),
        (lambda m, x: x.normalize(m.gamma, m.gamma, m.gamma[:3], None, 0.0), "raised RuntimeErr"),
    ],
)
def test_weights_that_cannot_be_computed_are_the_rules_mistake(rule: Any, said: str) -> None:
    with pytest.raises(reparam.ReparamError, match=rf"of Rescaled, at part,.*{said}"):
        fused_by(rule)


def test_a_rule_that_goes_on_after_a_refusal_refuses() -> None:
    def rule(module: Rescaled, x: reparam.AffineConv) -> Any:
        return x.convolve(module.gamma.view(-1, 1)).scale(2.0).convolve(torch.rand(3, 9)).scale(2.0)

    (row,) = fused_by(rule).reparam_report.refused
    assert "channels flow into an operator of" in row.reason


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        (lambda module: module, "<lambda>"),
        (functools.partial(lambda module: module), "<lambda>"),
    ],
)
def test_a_rule_that_is_not_called_like_that(rule: Any, named: str) -> None:
    (row,) = fused_by(rule).reparam_report.refused
    assert row.place == "part"
    assert "its rule does not know how it is called" in row.reason
    assert named in row.reason


def test_a_rule_may_be_any_callable() -> None:
    class Scaling:
        def __call__(self, module: Rescaled, x: reparam.AffineConv) -> Any:
            return module_rule(module, x)

    assert len(fused_by(Scaling()).reparam_report.fused) == 1
    assert len(fused_by(functools.partial(module_rule)).reparam_report.fused) == 1


def test_a_rule_refuses_with_a_reason_of_its_own() -> None:
    (row,) = fused_by(lambda module, x: reparam.Refusal("only at night")).reparam_report.refused
    assert (row.place, row.operator, row.reason) == ("part", "Rescaled", "only at night")


def test_a_wrong_rule_is_named_with_its_place() -> None:
    def wrong(module: Rescaled, x: reparam.AffineConv) -> Any:
        return x.scale(module.gamma)

    named = r"the rule tests\.test_registry\..*\.wrong of Rescaled \(part\)"
    with pytest.warns(UserWarning, match=rf"^part: .* rests on {named}: check .*rulecheck"):
        fused = fused_by(wrong)
    (row,) = fused.reparam_report.refused
    assert "verification failed" in row.reason
    assert "wrong of Rescaled (part)" in row.reason
    assert fused.reparam_report.fused == []


def test_a_wrong_rule_of_a_function_is_named() -> None:
    def wrong(x: reparam.AffineConv, factor: Tensor) -> Any:
        return x.scale(2.0)

    torch.manual_seed(0)
    model = nn.Sequential(network("function")[0]).eval()
    with pytest.warns(UserWarning, match=r"wrong of rescaled \(0 \(rescaled\)\)"):
        fused = reparam.fuse(model, rules={rescaled: wrong})
    assert fused.reparam_report.fused == []


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
    registered(torch.Tensor.split)(lambda *args: NotImplemented)


def test_an_operator_is_registered_once_under_all_its_names(registered: Any) -> None:
    registered(custom)(function_rule)
    with pytest.raises(reparam.ReparamError, match=r"rescaled already has a rule, .*function_rule"):
        registered(torch.ops.reparam_tests.rescaled)


@pytest.mark.parametrize("rule", [3, reparam.Refusal, Rescaled])
def test_a_class_is_no_rule(rule: Any) -> None:
    with pytest.raises(reparam.ReparamError, match="must be a function"):
        reparam.register_rule(Rescaled)(rule)
