"""What a rule may return and do, and what is said of one that is wrong."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run
from tests.support.taught import ROUNDING, C, Network, Rescaled, module_rule, rescaled


def by_module(model: Any, x: Tensor) -> Tensor:
    return model.part(x)


def fused_by(rule: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    model = Network(by_module, Rescaled()).eval()
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
    assert set(seen) == {torch.float64}  # it is asked once for each number of axes
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
    assert text.startswith("the rule tests.rules.test_calling.")
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
    model = Network(by_module, Rescaled()).eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parts, attributes = dict(model.named_modules()), dict(vars(model.part))
    fused = reparam.fuse(model, rules={Rescaled: broken}, inplace=inplace)
    (row,) = fused.reparam_report.refused
    assert "broken of Rescaled, at part, raised OfRuleError: no idea" in row.reason
    vars(model).pop("reparam_report", None)
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
    (row,) = fused_by(rule).reparam_report.refused
    assert re.search(rf"of Rescaled, at part,.*{said}", row.reason)


def test_a_rule_that_goes_on_after_a_refusal_refuses() -> None:
    def rule(module: Rescaled, x: reparam.AffineConv) -> Any:
        return x.convolve(module.gamma.view(-1, 1)).scale(2.0).convolve(torch.ones(3, 9)).scale(2.0)

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

    named = r"the rule tests\.rules\.test_calling\..*\.wrong of Rescaled \(part\)"
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
    model = nn.Sequential(Network(lambda m, x: rescaled(x, m.gamma.exp())).eval()).eval()
    with pytest.warns(UserWarning, match=r"wrong of rescaled \(0 \(rescaled\)\)"):
        fused = reparam.fuse(model, rules={rescaled: wrong})
    assert fused.reparam_report.fused == []


def test_what_a_rule_makes_is_exact_and_of_its_own_type_only() -> None:
    seen = []

    def rule(module: Rescaled, x: reparam.AffineConv) -> Any:
        made = torch.tensor([0.1]), torch.tensor([1]), torch.ones(1, dtype=torch.float32)
        seen.extend(tensor.dtype for tensor in made)
        assert made[0].item() == 0.1
        return module_rule(module, x)

    fused_by(rule)
    assert seen[:3] == [torch.float64, torch.int64, torch.float32]
    assert set(seen[3:]) <= set(seen[:3])
    assert torch.ones(1).dtype == torch.float32
