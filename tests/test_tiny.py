"""The whole public API on small networks, in seconds."""

import copy
import io
import pickle
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import reparam
from tests.support.blocks import ThreeBranches
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run
from tests.support.randomise import randomise_batch_norm

C = 4
EXACT = 1e-12


class Scaled(nn.Module):
    """A convolution, scaled by a module that needs a rule only if its forward is opaque."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, 3)
        self.scale = OpaqueScale()

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(self.conv(x))


class OpaqueScale(nn.Module):
    """A scale that symbolic tracing cannot see through."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(C))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(x.shape[1] // C):
            x = x * self.gamma[:, None, None]
        return x


def ready(model: nn.Module, seed: int = 0) -> nn.Module:
    return randomise_batch_norm(model.double().eval(), seed)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return ready(
        nn.Sequential(
            nn.Conv2d(3, C, 3, stride=2), nn.BatchNorm2d(C), ThreeBranches(C), ThreeBranches(C)
        )
    )


@pytest.fixture
def x() -> Tensor:
    return torch.randn(
        2, 3, 13, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


def assert_equal(fused: Callable[..., Any], model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        assert relative_error(fused(x.clone()), model(x.clone())) <= EXACT


def fingerprint(model: nn.Module) -> list[Any]:
    """Everything that a user can see of a model, bit for bit."""
    tensors = model.state_dict(keep_vars=True)
    return [
        [(name, id(module), type(module), sorted(vars(module))) for name, module in named(model)],
        [(name, id(t), t._version, t.requires_grad, t.grad is None) for name, t in tensors.items()],
        [t.detach().numpy().tobytes() for t in tensors.values()],
        torch.get_rng_state().numpy().tobytes(),
    ]


def named(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(model.named_modules(remove_duplicate=False))


# -- fuse -----------------------------------------------------------------------------------------


def test_a_block_becomes_one_convolution() -> None:
    block, x = ready(ThreeBranches(C)), torch.randn(2, C, 7, 6, dtype=torch.float64)
    fused = reparam.fuse(block)
    assert_equal(fused, block, x)
    counts = count_operators(fused, (x,))
    assert (counts.convolutions, counts.batch_norms, counts.total) == (1, 0, 2)


def test_a_network_becomes_its_convolutions(model: nn.Module, x: Tensor) -> None:
    fused = reparam.fuse(model)
    assert_equal(fused, model, x)
    counts = count_operators(fused, (x,))
    assert (counts.convolutions, counts.total) == (3, 5)


def test_the_model_is_untouched_bit_for_bit(model: nn.Module, x: Tensor) -> None:
    before = fingerprint(model)
    reparam.fuse(model, x)
    assert fingerprint(model) == before


def test_inplace_changes_the_model_itself(model: nn.Module, x: Tensor) -> None:
    expected = run(model, (x,))
    assert reparam.fuse(model, inplace=True) is model
    assert relative_error(run(model, (x,)), expected) <= EXACT
    assert count_operators(model, (x,)).batch_norms == 0


def test_fusing_twice_changes_nothing_more(model: nn.Module, x: Tensor) -> None:
    once = reparam.fuse(model)
    twice = reparam.fuse(once)
    assert twice.reparam_report.fused == []
    assert torch.equal(run(twice, (x,)), run(once, (x,)))
    assert count_operators(twice, (x,)) == count_operators(once, (x,))


def test_fusing_is_deterministic(model: nn.Module) -> None:
    one, two = reparam.fuse(model), reparam.fuse(copy.deepcopy(model))
    assert str(one.reparam_report) == str(two.reparam_report)
    assert one.reparam_report == two.reparam_report
    assert [name for name, _ in named(one)] == [name for name, _ in named(two)]
    first, second = one.state_dict(), two.state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_fusing_works_in_any_gradient_mode(
    model: nn.Module, x: Tensor, context: Callable[[], Any]
) -> None:
    with context():
        fused = reparam.fuse(model)
    assert_equal(fused, model, x)
    fused(x).sum().backward()
    assert all(p.grad is not None for p in fused.parameters())


def test_a_graph_module_gives_a_graph_module(model: nn.Module, x: Tensor) -> None:
    graph = fx.symbolic_trace(model)
    fused = reparam.fuse(graph)
    assert isinstance(fused, fx.GraphModule)
    assert [node.op for node in fused.graph.nodes].count("call_module") == 3
    assert_equal(fused, model, x)
    assert fused.reparam_report.fused


def test_a_model_keeps_its_class_and_methods() -> None:
    class Backbone(ThreeBranches):
        def features(self, x: Tensor) -> list[Tensor]:
            return [self(x)]

    backbone, x = ready(Backbone(C)), torch.randn(1, C, 5, 5, dtype=torch.float64)
    fused = reparam.fuse(backbone)
    assert type(fused) is Backbone
    assert relative_error(run(fused, (x,)), fused.features(x)[0].detach()) == 0
    assert_equal(fused, backbone, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_dtype_is_folded_in_float64_and_rounded_once(model: nn.Module, dtype: Any) -> None:
    fused = reparam.fuse(model.to(dtype))
    exact = reparam.fuse(copy.deepcopy(model).double())
    assert {p.dtype for p in fused.parameters()} == {dtype}
    rounded = {name: t.to(dtype) for name, t in exact.state_dict().items()}
    assert list(rounded) == list(fused.state_dict())
    assert all(torch.equal(t, rounded[name]) for name, t in fused.state_dict().items())


def test_example_inputs_are_compared(model: nn.Module, x: Tensor) -> None:
    fused = reparam.fuse(model, (x,))
    assert_equal(fused, model, x)
    assert count_operators(fused, (x,)) == count_operators(reparam.fuse(model), (x,))
    assert any("example inputs" in note for note in fused.reparam_report.notes)


# -- plan -----------------------------------------------------------------------------------------


def test_a_plan_prints_what_it_would_do(model: nn.Module) -> None:
    before = fingerprint(model)
    plan = reparam.plan(model)
    assert fingerprint(model) == before
    text = str(plan)
    assert "16 operators become 3" in text
    assert "2 Conv2d + 3 BatchNorm2d + 2 add" in text
    assert text == str(reparam.plan(model))
    assert "BatchNorm2d" in plan._repr_html_()


def test_a_plan_lists_what_is_fused_and_what_is_not() -> None:
    model = ready(
        nn.Sequential(nn.Conv2d(3, C, 1), nn.BatchNorm2d(C), nn.ReLU(), nn.BatchNorm2d(C))
    )
    plan = reparam.plan(model)
    (fused,), (refused,) = plan.fused, plan.refused
    assert (fused.operators, fused.counts) == ("Conv2d + BatchNorm2d", (2, 1))
    assert fused.multiply_adds == (12, 12)
    assert (refused.place, refused.operator) == ("3", "BatchNorm2d")
    assert "not affine" in refused.reason


def test_a_plan_can_be_applied_twice(model: nn.Module, x: Tensor) -> None:
    plan = reparam.plan(model)
    one, two = plan.apply(), plan.apply()
    assert one is not two
    assert one.reparam_report == two.reparam_report
    assert not {id(p) for p in one.parameters()} & {id(p) for p in two.parameters()}
    assert_equal(one, model, x)
    assert_equal(two, model, x)


def test_the_report_names_the_new_operators(model: nn.Module) -> None:
    fused = reparam.fuse(model)
    rows = fused.reparam_report.fused
    assert [type(fused.get_submodule(row.name)) for row in rows] == [nn.Conv2d] * 3
    assert all(row.error is not None and row.error < 1e-14 for row in rows)
    unverified = reparam.fuse(model, verify=False).reparam_report.fused
    assert [row.error for row in unverified] == [None] * 3


# -- Rules ----------------------------------------------------------------------------------------


def test_three_lines_teach_an_operator() -> None:
    class LayerScale(OpaqueScale):
        pass

    @reparam.register_rule(LayerScale)
    def layer_scale(module: Any, x: reparam.AffineConv) -> Any:
        return x.scale(module.gamma)

    model, x = Scaled(), torch.randn(1, C, 6, 6, dtype=torch.float64)
    model.scale = LayerScale()
    fused = reparam.fuse(ready(model))
    assert count_operators(fused, (x,)).total == 1
    assert_equal(fused, model, x)


def test_a_rule_may_be_given_for_one_call() -> None:
    model, x = ready(Scaled()), torch.randn(1, C, 6, 6, dtype=torch.float64)
    fused = reparam.fuse(model, rules={OpaqueScale: lambda module, x: x.scale(module.gamma)})
    assert count_operators(fused, (x,)).total == 1
    assert_equal(fused, model, x)
    assert reparam.fuse(model).reparam_report.fused == []


def test_none_switches_a_rule_off_for_one_call(model: nn.Module, x: Tensor) -> None:
    fused = reparam.fuse(model, rules={nn.BatchNorm2d: None})
    assert count_operators(fused, (x,)).batch_norms == 7
    assert {row.reason for row in fused.reparam_report.refused if "Norm" in row.operator} == {
        "its rule is switched off for this call"
    }
    assert reparam.fuse(model).reparam_report.fused


def test_rules_are_written_with_forms_and_refusals() -> None:
    assert issubclass(reparam.ReparamError, Exception)
    refusal = reparam.Refusal("a reason")
    assert (str(refusal), refusal) == ("a reason", reparam.Refusal("a reason"))
    seen: list[Any] = []

    def rule(module: OpaqueScale, x: reparam.AffineConv) -> reparam.Refusal:
        seen.append(x)
        return refusal

    fused = reparam.fuse(ready(Scaled()), rules={OpaqueScale: rule})
    assert [type(form) for form in seen] == [reparam.AffineConv]
    assert [row.reason for row in fused.reparam_report.refused] == ["a reason"]


# -- verify ---------------------------------------------------------------------------------------


def test_verify_measures_both_against_float64(model: nn.Module, x: Tensor) -> None:
    single = copy.deepcopy(model).float()
    result = reparam.verify(single, reparam.fuse(single), x.float())
    assert len(result.rounding) == len(result.original) == len(result.fused) == 1
    assert 0 < result.original[0] < 1e-5
    assert 0 < result.fused[0] < 1e-5


def test_verify_sees_a_wrong_model(model: nn.Module, x: Tensor) -> None:
    fused = reparam.fuse(model)
    assert max(reparam.verify(model, fused, x).rounding) < EXACT
    with torch.no_grad():
        next(fused.parameters()).mul_(1.01)
    assert max(reparam.verify(model, fused, x).rounding) > 1e-3


# -- What people do with a fused model ------------------------------------------------------------


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def state_dict_loaded(fused: nn.Module) -> nn.Module:
    fresh = copy.deepcopy(fused)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    fresh.load_state_dict(fused.state_dict())
    return fresh


@pytest.mark.parametrize(
    "roundtrip",
    [
        copy.deepcopy,
        lambda fused: pickle.loads(pickle.dumps(fused)),
        saved_and_loaded,
        state_dict_loaded,
    ],
    ids=["deepcopy", "pickle", "save", "state_dict"],
)
def test_round_trips(model: nn.Module, x: Tensor, roundtrip: Callable[..., nn.Module]) -> None:
    fused = reparam.fuse(model)
    again = roundtrip(fused)
    assert torch.equal(run(again, (x,)), run(fused, (x,)))
    with torch.no_grad():  # the copy has tensors of its own, and uses them
        for parameter in again.parameters():
            parameter.zero_()
    assert run(again, (x,)).abs().max() == 0
    assert_equal(fused, model, x)


@pytest.mark.parametrize(
    "compiled",
    [
        torch.jit.trace,
        lambda fused, x: torch.compile(fused, fullgraph=True, backend="eager"),
        lambda fused, x: torch.export.export(fused, (x,)).module(),
    ],
    ids=["jit", "compile", "export"],
)
def test_compilers(model: nn.Module, x: Tensor, compiled: Callable[..., Any]) -> None:
    assert_equal(compiled(reparam.fuse(model), x), model, x)


def test_a_fused_model_trains(model: nn.Module, x: Tensor) -> None:
    fused = reparam.fuse(model)
    fused(x).square().sum().backward()
    assert [p.grad is not None for p in fused.parameters()] == [True] * 6


def test_frozen_branches_give_a_frozen_convolution(model: nn.Module) -> None:
    model.requires_grad_(False)
    assert [p.requires_grad for p in reparam.fuse(model).parameters()] == [False] * 6


def test_channels_last_stays_channels_last(model: nn.Module) -> None:
    fused = reparam.fuse(model.to(memory_format=torch.channels_last))
    weights = [p for p in fused.parameters() if p.dim() == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert any(not weight.is_contiguous() for weight in weights)


def test_channels_last_stays_so_over_three_axes() -> None:
    model = ready(nn.Sequential(nn.Conv3d(3, C, 3), nn.BatchNorm3d(C)))
    fused = reparam.fuse(model.to(memory_format=torch.channels_last_3d))
    assert fused[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert not fused[0].weight.is_contiguous()


def test_a_model_may_have_a_forward_of_its_own(x: Tensor) -> None:
    model = ready(nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C)))
    model.forward = types.MethodType(lambda self, x: self[1](self[0](x)) + 1, model)
    fused = reparam.fuse(model)
    assert_equal(fused, model, x)
    assert count_operators(fused, (x,)).total == 1


def test_equalize() -> None:
    model = nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.ReLU(), nn.Conv2d(C, 2, 3))
    fused = reparam.fuse(ready(model))
    equal = reparam.equalize(fused)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert relative_error(run(equal, (x,)), run(fused, (x,))) <= EXACT
    assert [row.channels for row in equal.reparam_report.equalized] == [(C, C), (0, 2)]
