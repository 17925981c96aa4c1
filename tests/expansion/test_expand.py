"""An expanded model computes what it did, trains in all its branches, and fuses back."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reparam
from reparam import ReparamError, blocks
from reparam.expansion import Block, ExpandedLayer, Kernel, Pool, Scale, Skip
from tests.refusals.checking import EXACT, ready
from tests.support.errors import relative_error, run

BLOCKS: dict[str, Block] = {
    "rep_vgg": blocks.rep_vgg(),
    "acnet": blocks.acnet(),
    "dbb": blocks.dbb(),
    "mobile_one": blocks.mobile_one(3),
    "rep_lk": blocks.rep_lk(2),
    "expand_net": blocks.expand_net(2.0),
    "lora": blocks.lora(2),
    "csla": blocks.csla(),
    "scaled pool": Block("mine", [Pool(), Scale(0.5)], [Skip(), Scale()]),
}


class Net(nn.Module):
    """Convolutions with and without bias, a norm, a residual sum and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.down = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.norm(self.conv(x)) + x).relu()
        result: Tensor = self.fc(self.down(x).relu().mean((2, 3)))
        return result


def moved(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with all its parameters and statistics moved at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                change = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.mul_(0.5 + change) if "running_var" in name else tensor.add_(change - 0.5)
    return model


def shapes(model: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, tensor.shape) for name, tensor in model.state_dict().items()]


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("training", [False, True])
def test_an_expanded_model_computes_the_same(name: str, training: bool) -> None:
    model, x = ready(Net()).train(training), torch.randn(2, 6, 9, 8, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    expanded = reparam.expand(model, BLOCKS[name])
    assert expanded.reparam_report.expanded
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)
    modes = {path: module.training for path, module in model.named_modules()}
    for path, module in expanded.named_modules():
        assert module.training == modes.get(path, training)
    with torch.no_grad():
        assert relative_error(expanded(x), copy.deepcopy(model)(x)) < EXACT


@pytest.mark.parametrize("name", BLOCKS)
def test_what_was_trained_fuses_back(name: str) -> None:
    model, x = ready(Net()), torch.randn(2, 6, 9, 8, dtype=torch.float64)
    expanded = moved(reparam.expand(model, BLOCKS[name]))
    fused = reparam.fuse(expanded)
    assert not any(isinstance(module, ExpandedLayer) for module in fused.modules())
    assert shapes(fused) == shapes(reparam.fuse(model))
    assert relative_error(run(fused, (x,)), run(expanded, (x,))) < EXACT


@pytest.mark.parametrize("name", BLOCKS)
def test_every_branch_is_trained(name: str) -> None:
    torch.manual_seed(0)
    model, x = ready(Net()), torch.randn(4, 6, 9, 8, dtype=torch.float64)
    expanded = reparam.expand(model, BLOCKS[name]).train()
    optimizer = torch.optim.SGD(expanded.parameters(), 1e-3)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = expanded(x).square().mean()
        loss.backward()
        assert all(parameter.grad is not None for parameter in expanded.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@st.composite
def convolutions(draw: st.DrawFn) -> Any:
    axes = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    width = st.sampled_from([4, 8])
    into = draw(width)
    sizes = [draw(st.integers(1, 5)) for _ in range(axes)]
    dilations = [draw(st.integers(1, 2)) for _ in range(axes)]
    mode = draw(st.sampled_from(["zeros", "zeros", "circular", "reflect", "replicate"]))
    padding: Any = [draw(st.integers(0, 3)) for _ in range(axes)]
    stride = [draw(st.integers(1, 3)) for _ in range(axes)]
    if draw(st.booleans()):
        padding, stride = "same", [1] * axes
    return CONVOLUTIONS[axes](
        into,
        draw(st.sampled_from([into, into, 4, 8])),
        sizes,
        stride,
        padding,
        dilations,
        groups,
        draw(st.booleans()),
        mode,
        dtype=torch.float64,
    )


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(max_examples=120, deadline=None)
@given(convolutions(), st.sampled_from(sorted(BLOCKS)))
def test_any_convolution_computes_the_same_or_stays(layer: Any, name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(layer).eval()
    expanded = nn.Sequential()
    with suppress(ReparamError):  # the block has no branches for such a layer
        expanded = reparam.expand(model, BLOCKS[name], where="0")
    assume(len(expanded))
    x = torch.randn(2, layer.in_channels, *(13,) * len(layer.kernel_size), dtype=torch.float64)
    assert relative_error(run(expanded, (x,)), run(model, (x,))) < 1e-12
    trained = moved(expanded)
    fused = reparam.fuse(trained)
    assert shapes(fused) == shapes(model)
    assert relative_error(run(fused, (x,)), run(trained, (x,))) < EXACT


FITTING = {name: ["conv", "down", "fc"] for name in BLOCKS} | {
    "dbb": ["conv", "down"],
    "scaled pool": ["conv"],
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_has_branches_for_every_layer_that_it_is_for(name: str) -> None:
    expanded = reparam.expand(ready(Net()), BLOCKS[name], where=["conv", "down", "fc"])
    assert [row.place for row in expanded.reparam_report.expanded] == FITTING[name]


@pytest.mark.parametrize(("size", "taps"), [(1, [2]), (2, [1, 2]), (3, [1, 2, 3])])
def test_a_smaller_kernel_is_in_the_middle(size: int, taps: list[int]) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 5, padding=2, bias=False)).double().eval()
    expanded: Any = reparam.expand(model, blocks.rep_lk(size))
    nn.init.zeros_(expanded[0].main_layer.weight)
    kernel = reparam.fuse(expanded)[0].weight  # type: ignore[index]
    assert kernel.abs().sum((0, 1, 2)).nonzero().flatten().tolist() == taps
    assert kernel.abs().sum((0, 1, 3)).nonzero().flatten().tolist() == taps


def test_each_expanded_layer_has_one_row() -> None:
    expanded = reparam.expand(ready(Net()), blocks.lora(2))
    fused = reparam.fuse(expanded)
    planned = reparam.plan(expanded).report.fused
    assert len(planned) == len(fused.reparam_report.fused) == 3


def test_where_takes_paths_types_and_functions() -> None:
    model = ready(Net())

    def where(choice: Any) -> list[str]:
        report = reparam.expand(model, blocks.lora(2), where=choice).reparam_report
        return [row.place for row in report.expanded]

    assert where("conv") == ["conv"]
    assert where(["con*", "fc"]) == ["conv", "fc"]
    assert where(nn.Linear) == ["fc"]
    assert where(lambda path, module: getattr(module, "groups", 1) > 1) == ["down"]
    assert where(None) == ["conv", "down", "fc"]
    with pytest.raises(ReparamError, match="means no module; did you mean 'conv'"):
        where("cnv")
    with pytest.raises(ReparamError, match="expected a path"):
        where(3)


def test_by_default_layers_that_would_train_like_one_stay() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    report = reparam.expand(model, Block("1x1", [Kernel(1)])).reparam_report
    assert [row.place for row in report.expanded] == ["2"]
    assert "train like one" in report.refused[0].reason
    named = reparam.expand(model, Block("1x1", [Kernel(1)]), where=["0", "2"]).reparam_report
    assert [row.place for row in named.expanded] == ["0", "2"]


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.tied = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.tied.weight = self.conv.weight
        self.hooked, self.read = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.hooked.register_forward_hook(lambda module, args, value: value * 2)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1))
        self.own = nn.Conv2d(4, 4, 3, padding=1)
        self.idle = nn.Conv2d(4, 4, 3, padding=1)
        self.free = nn.Conv2d(4, 4, 3, padding=1)
        self.own.forward = lambda x: x  # type: ignore[method-assign, assignment]

    def forward(self, x: Tensor) -> Tensor:
        x = self.tied(self.conv(x).relu()).relu()
        x = self.hooked(self.read(x)).relu() * self.read.weight.mean()
        result: Tensor = self.own(self.normed(self.free(x)).relu())
        return result


def test_what_other_code_uses_stays_with_its_reason() -> None:
    report = reparam.expand(ready(Shared()), blocks.acnet()).reparam_report
    assert [row.place for row in report.expanded] == ["free"]
    reasons = {row.place: row.reason for row in report.refused}
    assert "shares its weights" in reasons["conv"]
    assert "shares its weights" in reasons["tied"]
    assert "hooks" in reasons["hooked"]
    assert "code reads its weights" in reasons["read"]
    assert "set on the instance" in reasons["own"]
    assert "no code is known that calls it" in reasons["idle"]
    assert "free: " not in str(report)
    assert "1 layer with the branches of ACNet" in str(report)


def test_nothing_to_expand_is_an_error() -> None:
    with pytest.raises(ReparamError, match="no layer can be expanded"):
        reparam.expand(nn.Sequential(nn.ReLU()), blocks.dbb())
    with pytest.raises(ReparamError, match="expected a block"):
        reparam.expand(Net(), "dbb")  # type: ignore[arg-type]
    with pytest.raises(ReparamError, match="found str"):
        reparam.expand("model", blocks.dbb())  # type: ignore[type-var]
    with pytest.raises(ReparamError, match="norm='all'"):
        reparam.expand(Net(), blocks.dbb(), norm="all")  # type: ignore[arg-type]


def test_deployed_weights_are_trained_on() -> None:
    model, x = ready(Net()), torch.randn(2, 6, 9, 8, dtype=torch.float64)
    fused = reparam.fuse(model)
    expanded = reparam.expand(fused, blocks.dbb(), where=nn.Conv2d)
    assert relative_error(run(expanded, (x,)), run(model, (x,))) < EXACT
    again = reparam.fuse(moved(expanded))
    assert shapes(again) == shapes(fused)
    assert relative_error(run(again, (x,)), run(expanded, (x,))) < EXACT


def test_a_layer_says_of_itself_what_it_did() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1)).eval()
    layer: Any = reparam.expand(model, blocks.acnet())[0]
    assert (layer.stride, layer.out_channels, layer.padding_mode) == ((2, 2), 6, "zeros")
    with pytest.raises(AttributeError, match="its weights are those of its branches"):
        _ = layer.weight


def test_hooks_on_a_branch_are_heeded() -> None:
    model, x = ready(Net()), torch.randn(2, 6, 9, 8, dtype=torch.float64)
    expanded: Any = reparam.expand(model, blocks.dbb(), where="conv")
    expanded.conv.branches[0][0].register_forward_hook(lambda module, args, value: value.relu())
    fused = reparam.fuse(expanded)
    assert relative_error(run(fused, (x,)), run(expanded, (x,))) < EXACT


def test_a_pruned_branch_is_heeded() -> None:
    model, x = ready(Net()), torch.randn(2, 6, 9, 8, dtype=torch.float64)
    expanded: Any = reparam.expand(model, blocks.dbb(), where="conv")
    nn.utils.prune.random_unstructured(expanded.conv.branches[0][0], "weight", 0.5)
    fused = reparam.fuse(expanded)
    assert relative_error(run(fused, (x,)), run(expanded, (x,))) < EXACT


def test_frozen_layers_stay_frozen() -> None:
    model = Net().eval()
    model.conv.requires_grad_(False)
    expanded = reparam.expand(model, blocks.acnet())
    wanted = {name: p.requires_grad for name, p in expanded.named_parameters()}
    assert not any(value for name, value in wanted.items() if name.startswith("conv."))
    assert all(value for name, value in wanted.items() if name.startswith("down."))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_rounded_once(dtype: torch.dtype) -> None:
    model = ready(Net()).to(dtype)
    expanded = reparam.expand(model, blocks.dbb())
    assert {p.dtype for p in expanded.parameters()} == {dtype}
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    exact = run(copy.deepcopy(model).double(), (x,))
    bound = 64 * torch.finfo(dtype).eps
    assert relative_error(run(copy.deepcopy(expanded).double(), (x,)), exact) < bound


def test_a_branch_is_not_expanded_again() -> None:
    once = reparam.expand(ready(Net()), blocks.dbb(), where="conv")
    report = reparam.expand(once, blocks.lora(2)).reparam_report
    assert [row.place for row in report.expanded] == ["down", "fc"]
    assert {row.reason for row in report.refused} == {"it is in a branch of an expanded layer"}


def test_complex_layers_stay() -> None:
    layers = nn.Conv2d(4, 4, 3, dtype=torch.complex64), nn.Conv2d(4, 4, 3)
    report = reparam.expand(nn.Sequential(*layers).eval(), blocks.acnet()).reparam_report
    assert [row.place for row in report.expanded] == ["1"]
    assert "no floating-point numbers" in report.refused[0].reason


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["hook", "parametrization"])
@pytest.mark.parametrize("normed", [False, True])
def test_a_branch_whose_weight_is_computed_is_heeded(kind: str, normed: bool) -> None:
    after = nn.BatchNorm2d(6) if normed else nn.ReLU()
    model = ready(nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), after))
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    expanded: Any = reparam.expand(model, blocks.dbb(), where="0")
    old, new = nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm
    (old if kind == "hook" else new)(expanded[0].branches[0][0])
    expanded(x)
    expanded.eval()
    fused, live = reparam.fuse(expanded), reparam.fuse(expanded, live=True)
    assert relative_error(run(fused, (x,)), run(expanded, (x,))) < EXACT
    assert relative_error(run(live, (x,)), run(expanded, (x,))) < EXACT
    moved(expanded)
    fresh = reparam.fuse(expanded)
    assert relative_error(run(fresh, (x,)), run(expanded, (x,))) < EXACT
    assert torch.equal(run(reparam.refresh(fused, expanded), (x,)), run(fresh, (x,)))


@pytest.mark.parametrize("axes", CONVOLUTIONS)
def test_an_input_shorter_than_the_kernel(axes: int) -> None:
    """Torch's pools over three axes refuse it, unless it is padded before."""
    layer = CONVOLUTIONS[axes](4, 4, 5, padding=2, dtype=torch.float64)
    expanded = reparam.expand(nn.Sequential(layer).eval(), blocks.dbb())
    x = torch.randn(2, 4, *(2,) * axes, dtype=torch.float64)
    assert relative_error(run(expanded, (x,)), run(layer, (x,))) < 1e-12
