"""Mistakes planted after planning: every one is noticed, and costs only what it touches."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.capture.trace import Call
from reparam.rewriting import grafting
from reparam.rewriting import new_code as slicing
from reparam.rewriting import rewriter as rewriting
from reparam.verification.call_samples import Sample, errors_in_one_run
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run
from tests.support.randomise import randomise_batch_norm

C = 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Conv2d(C, C, 3, padding=1)
        self.point = nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.dense(x) + self.point(x))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C))
    blocks = nn.Sequential(stem, Block(), Block(), Block()).double().eval()
    return randomise_batch_norm(blocks, 0)


def images() -> Tensor:
    return torch.randn(2, 3, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def forbid(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of one module cannot be replaced."""
    original = slicing.NewCode.__init__

    def write(self: Any, slicer: Any, owner: Call) -> None:
        if owner.path == path:
            raise slicing.GraftError("its code must stay", [owner])
        original(self, slicer, owner)

    monkeypatch.setattr(slicing.NewCode, "__init__", write)


@pytest.mark.parametrize("inplace", [False, True])
def test_only_the_region_at_fault_is_left(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, inplace: bool
) -> None:
    x, expected = images(), run(model, (images(),))
    forbid("2", monkeypatch)
    fused = reparam.fuse(model, inplace=inplace)
    assert relative_error(run(fused, (x,)), expected) <= 1e-12
    assert count_operators(fused, (x,)).convolutions == 1 + 1 + 2 + 1
    assert len(fused.reparam_report.fused) == 3
    rows = [row for row in fused.reparam_report.refused if row.place.startswith("2")]
    assert [row.reason for row in rows] == ["its code must stay"]


@pytest.mark.parametrize("inplace", [False, True])
def test_wrong_code_is_noticed_without_example_inputs(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, inplace: bool
) -> None:
    x, expected = images(), run(model, (images(),))
    original = grafting._Graft._attach

    def attach(self: Any, code: slicing.NewCode) -> None:
        if code.call.path == "2":
            for node in list(code.graph.nodes):
                if node.target is F.relu:
                    node.replace_all_uses_with(node.args[0])
                    code.graph.erase_node(node)
        original(self, code)

    monkeypatch.setattr(grafting._Graft, "_attach", attach)
    with pytest.warns(UserWarning, match="2: with its new code it returns something else"):
        fused = reparam.fuse(model, inplace=inplace)
    assert relative_error(run(fused, (x,)), expected) <= 1e-12
    assert len(fused.reparam_report.fused) == 3


@pytest.mark.parametrize("slope", [1e-1, 1e-4])
def test_code_that_is_a_little_wrong_is_noticed(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, slope: float
) -> None:
    x, expected = images(), run(model, (images(),))
    original = grafting._Graft._attach

    def attach(self: Any, code: slicing.NewCode) -> None:
        for node in code.graph.nodes:
            if node.target is F.relu and code.call.path == "3":
                node.target, node.args = F.leaky_relu, (node.args[0], slope)
        original(self, code)

    monkeypatch.setattr(grafting._Graft, "_attach", attach)
    with pytest.warns(UserWarning, match="3: with its new code it returns something else"):
        fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), expected) <= 1e-12


def test_code_that_raises_is_noticed(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    x, expected = images(), run(model, (images(),))
    original = grafting._Graft._attach

    def attach(self: Any, code: slicing.NewCode) -> None:
        for node in code.graph.nodes:
            if node.target is F.relu and code.call.path == "3":
                node.target = torch.chunk  # knows no ``inplace``
        original(self, code)

    monkeypatch.setattr(grafting._Graft, "_attach", attach)
    with pytest.warns(UserWarning, match="3: its new code raises TypeError"):
        fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), expected) <= 1e-12
    assert len(fused.reparam_report.fused) == 3


class Outer(nn.Module):
    """Branches of its own, and a block that reads nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.inner = nn.Conv2d(3, C, 3), nn.Conv2d(3, C, 3), Block()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(F.relu(self.a(x) + self.b(x)))
        return result


def test_a_part_that_is_given_something_else_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is given, the part returns in a check what it did: what it is given tells."""
    model, x = Outer().double().eval(), images()
    original = grafting._Graft._attach

    def attach(self: Any, code: slicing.NewCode) -> None:
        for node in code.graph.nodes:
            if node.target is F.relu and code.call.path == "":
                node.target = torch.abs
                node.kwargs = {}
        original(self, code)

    monkeypatch.setattr(grafting._Graft, "_attach", attach)
    with pytest.warns(UserWarning, match="the model: with its new code it returns something else"):
        fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-12


CALLS: list[int] = []


class Numbered(Block):
    """Numbers what it returns, by what nobody puts back."""

    def forward(self, x: Tensor) -> Any:
        CALLS.append(0)
        return super().forward(x), len(CALLS)


def test_a_number_that_is_another_in_every_call_is_no_constant() -> None:
    model, x = Numbered().double().eval(), torch.randn(2, C, 9, 8, dtype=torch.float64)
    fused = reparam.fuse(model)
    for _ in range(3):
        CALLS.clear()
        run(fused, (x,))
        assert run(fused, (x,))[1] == 2
    assert relative_error(run(fused, (x,))[0], run(model, (x,))[0]) <= 1e-12


def test_a_swap_in_the_wrong_place_is_noticed(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = rewriting.Rewriter._skip

    def skip(self: Any, *args: Any) -> None:
        original(self, *args)
        self.result.modules["0.1"] = nn.ReLU()

    monkeypatch.setattr(rewriting.Rewriter, "_skip", skip)
    x, expected = images(), run(model, (images(),))
    with pytest.warns(UserWarning, match="returns something else"):
        fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), expected) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inplace", [False, True])
def test_another_result_on_the_example_inputs_is_an_alarm(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, inplace: bool
) -> None:
    model, x = model.to(dtype), images().to(dtype)
    expected = run(model, (x,))
    state = copy.deepcopy(model.state_dict())
    original = grafting.prune

    def prune(target: nn.Module, *rest: Any) -> list[str]:
        with torch.no_grad():
            target.get_submodule("1.fused_conv").weight[0] *= 3
        return original(target, *rest)

    monkeypatch.setattr(grafting, "prune", prune)
    monkeypatch.setattr("reparam.fusing.applying.Check", lambda planned, rewritten: None)
    with pytest.warns(UserWarning, match="on the example inputs the outputs of the new model"):
        fused = reparam.fuse(model, x, inplace=inplace)
    assert torch.equal(run(fused, (x,)), expected)
    assert list(fused.state_dict()) == list(state)
    assert fused.reparam_report.fused == []
    assert any("on the example inputs" in row.reason for row in fused.reparam_report.refused)


ELSEWHERE: dict[str, Callable[[Tensor], bool]] = {
    "in another batch": lambda y: len(y) != 2,
    "of half the size": lambda y: y.shape[-1] < 6,
    "with gradients": lambda y: torch.is_grad_enabled(),
    "in inference mode": lambda y: torch.is_inference_mode_enabled(),
}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_another_result_elsewhere_is_an_alarm(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    x, expected = images(), run(model, (images(),))
    original = grafting.prune

    def prune(target: nn.Module, *rest: Any) -> list[str]:
        staying = original(target, *rest)
        conv = target.get_submodule("1.fused_conv")
        conv.register_forward_hook(lambda m, args, y: y * 2 if ELSEWHERE[where](y) else y)
        return staying

    monkeypatch.setattr(grafting, "prune", prune)
    monkeypatch.setattr("reparam.fusing.applying.Check", lambda planned, rewritten: None)
    with pytest.warns(UserWarning, match=where):
        fused = reparam.fuse(model, x)
    assert torch.equal(run(fused, (x,)), expected)
    assert fused.reparam_report.fused == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rounding_is_no_alarm(model: nn.Module, dtype: torch.dtype) -> None:
    fused = reparam.fuse(model.to(dtype), images().to(dtype))
    assert len(fused.reparam_report.fused) == 4
    assert any("on the example inputs" in note for note in fused.reparam_report.notes)


class Repeated(nn.Module):
    """A convolution and a norm, and a map that is applied to what they return again and again."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        x = (2 * self.norm(self.conv(x))).sigmoid()
        for _ in range(100):
            x = self.step(x)
        return x


@pytest.mark.parametrize(
    "step",
    [lambda x: 3.9 * x * (1 - x), lambda x: x * 10**-3.19],
    ids=["chaos", "a signal that all but vanishes"],
)
def test_what_is_all_rounding_is_no_alarm(step: Callable[[Tensor], Tensor]) -> None:
    model = Repeated(step).eval()
    randomise_batch_norm(model, 0)
    fused = reparam.fuse(model)
    assert len(fused.reparam_report.fused) == 1
    assert [note for note in fused.reparam_report.notes if "could not be run by themselves" in note]


def test_what_cannot_be_run_by_itself_is_noted() -> None:
    class Indexed(nn.Module):
        """Its first operator takes indices, which are no images."""

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 8)
            self.first = nn.Linear(8, 8)
            self.second = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(2 * self.second(self.first(self.table(x)))) + 1

    for model, named in ((Indexed(), "(the model)"), (nn.Sequential(Indexed()), "(0)")):
        fused = reparam.fuse(model.eval())
        assert len(fused.reparam_report.fused) == 1
        (note,) = fused.reparam_report.notes
        assert "could not be run by themselves" in note
        assert named in note


class InTwo(nn.Module):
    """Its code runs at some sizes only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        upper, lower = self.linear(self.conv(x).permute(0, 2, 3, 1)).split(4, 1)
        return upper - lower


def test_code_that_refuses_a_sample_is_no_worse_than_before() -> None:
    model, images = InTwo().double().eval(), torch.randn(2, 3, 8, 7, dtype=torch.float64)
    fused = reparam.fuse(model)  # warns of a mistake where new code raises what the old did not
    assert relative_error(run(fused, (images,)), run(model, (images,))) <= 1e-12
    assert count_operators(fused, (images,)).linears == 0
    (note,) = fused.reparam_report.notes
    assert "could not be run by themselves (the model)" in note


def test_a_plan_is_carried_out_twice_alike(model: nn.Module) -> None:
    plan = reparam.plan(model)
    one, two = plan.apply(), plan.apply()
    assert one.reparam_report == two.reparam_report
    first, second = one.state_dict(), two.state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


class Remembering(nn.Module):
    """What it scales by is computed from a buffer that changes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, C, 3)
        self.norm = nn.BatchNorm2d(C)
        self.register_buffer("calls", torch.ones(C, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        factor = self.calls + 1
        result = self.norm(self.conv(x)) * factor
        self.calls.copy_(factor)
        return result


def test_what_is_computed_from_a_changing_buffer_is_no_constant() -> None:
    model = randomise_batch_norm(Remembering().double().eval(), 0)
    fused = reparam.fuse(model)
    for _ in range(3):
        x = images()
        assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-12


@pytest.mark.parametrize(
    "between", [nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Flatten(2)], ids=["pool", "view"]
)
def test_what_a_scale_moves_across_stays_where_it_is(between: nn.Module) -> None:
    last = nn.BatchNorm1d(C) if isinstance(between, nn.Flatten) else nn.BatchNorm2d(C)
    model = nn.Sequential(nn.BatchNorm2d(C), between, last).double().eval()
    x = torch.randn(2, C, 9, 8, dtype=torch.float64)
    fused = reparam.fuse(randomise_batch_norm(model, 0))
    assert len(fused.reparam_report.fused) == 1
    assert relative_error(run(fused, (x,)), run(model, (x,))) < 1e-12


class Twice(nn.Module):
    """Runs its part twice, and once more what it does not run at all."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(C, C)
        self.idle = nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.part(torch.sin(self.part(x))))


def test_errors_of_parts_are_found_in_one_run() -> None:
    module = Twice().double().eval()
    x = torch.randn(2, C, dtype=torch.float64)
    with torch.no_grad():
        first = module.part(x)
        second = module.part(first.sin())
        samples = [Sample(((x,), {}), first), Sample(((first.sin(),), {}), second)]
        whole = Sample(((x,), {}), second.tanh())
    parts = {"part": samples, "idle": samples[:1]}
    right = errors_in_one_run(module, whole, parts)
    assert right["part"] < 1e-15
    assert right[""] < 1e-15
    assert right["idle"] == float("inf"), "what did not run cannot agree"
    wrong = [samples[0], Sample(samples[1].inputs, 2 * second)]
    errors = errors_in_one_run(module, whole, {"part": wrong})
    assert errors["part"] > 0.1
    assert errors[""] < 1e-15
    assert "forward" not in vars(module.part)
    exact = {id(module.part.weight): module.part.weight.detach() + 0.1}
    moved = errors_in_one_run(module, whole, {"part": samples}, exact)
    assert moved["part"] > 1e-3
    assert moved[""] > 1e-3
