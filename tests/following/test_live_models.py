"""A live fused model trains its branches: their gradients, their names, their modes."""

from __future__ import annotations

import io
import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import reparam
from reparam import blocks
from tests.following.moving import moved
from tests.models.catalogue import BLOCKS
from tests.models.test_blocks import inputs, trained
from tests.support.blocks import ThreeBranches
from tests.support.randomise import randomise_batch_norm

BOUND = 1e-12


class Undetached(TorchFunctionMode):
    """Gradients of what a forward computes, also where it cuts them."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.detach and args[0].requires_grad:
            return args[0]
        return func(*args, **(kwargs or {}))


def named(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by name; where an operator stands, its attributes are computed ones."""
    return dict(model.named_parameters(remove_duplicate=False))


def gradients(model: nn.Module, x: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The gradients of all parameters that have one, by name."""
    parameters = dict(model.named_parameters())
    with Undetached():
        outputs = [leaf for leaf in tree_leaves(model(*x)) if isinstance(leaf, Tensor)]
    loss = sum(output.square().sum() for output in outputs)
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}


def assert_same_gradients(live: nn.Module, model: nn.Module, x: tuple[Tensor, ...]) -> None:
    """Asserts that every branch gets the gradient that it gets in the model."""
    ours, theirs = gradients(live, x), gradients(model, x)
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        # A bias before a norm of the batch has none but rounding.
        scale = max(float(gradient.abs().max()), 1e-3 * largest)
        assert float((ours[name] - gradient).abs().max()) <= BOUND * scale, name


# The forward of one writes its kernel into a parameter, past all gradients: it trains that.
FOLLOWED = [pytest.param(b, id=b.name) for b in BLOCKS if b.name != "SPAN, kernel"]


@pytest.mark.parametrize("block", FOLLOWED)
def test_every_block_trains_its_branches(block: Any) -> None:
    model = deepcopy(trained(block)).requires_grad_(True)
    live = reparam.fuse(model, live=True)
    assert {*live.state_dict()} == {*model.state_dict()}
    (x,) = next(inputs(block))
    for _ in range(2):
        assert_same_gradients(live, model, (x,))
        live.load_state_dict(moved(model).state_dict())
        with torch.no_grad():
            now, fresh = tree_leaves(live(x)), tree_leaves(reparam.fuse(model)(x))
        assert all(torch.equal(a, b) for a, b in zip(now, fresh, strict=True))


class Computed(nn.Module):
    """The online form of two branches, with a norm and a layer that is random in training mode."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.dense = nn.Parameter(torch.randn(channels, channels, 3, 3))
        self.point = nn.Parameter(torch.randn(channels, channels, 1, 1))
        self.scale = nn.Parameter(torch.rand(2, channels))
        self.norm = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        point = F.pad(self.point, (1, 1, 1, 1))
        kernel = torch.stack((self.dense, point)) * self.scale[:, :, None, None, None]
        x = self.norm(F.conv2d(x, kernel.sum(0), padding=1))
        return self.frozen(self.dropout(F.relu(x)))


def training() -> nn.Module:
    torch.manual_seed(0)
    model = randomise_batch_norm(Computed().eval(), seed=0).double().train()
    model.frozen.eval()
    return model


def test_a_model_in_training_mode() -> None:
    model, x = training(), torch.randn(4, 6, 7, 7, dtype=torch.float64)
    before = deepcopy(model.state_dict())
    live = reparam.fuse(model, live=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    modes = {name: module.training for name, module in model.named_modules()}
    assert all(modes[n] == m.training for n, m in live.named_modules() if n in modes)
    report = live.reparam_report
    assert [row.name for row in report.fused] == ["fused_conv", "frozen.0"]
    reasons = {row.place: row.reason for row in report.refused}
    assert reasons["norm"] == "it normalises by the statistics of the batch"
    for form in (model, live):
        torch.manual_seed(1)
        form.zero_grad()
        form(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        gradient = named(live)[name].grad
        assert gradient is not None
        assert torch.allclose(gradient, parameter.grad, rtol=1e-11, atol=1e-11), name
    assert torch.allclose(live.norm.running_mean, model.norm.running_mean, rtol=1e-12)
    assert live.norm.num_batches_tracked == model.norm.num_batches_tracked == 1
    assert torch.equal(live.state_dict()["frozen.1.running_var"], before["frozen.1.running_var"])


def test_without_live_training_mode_is_refused() -> None:
    with pytest.raises(reparam.ReparamError, match="training mode"):
        reparam.fuse(training())


def test_an_optimizer_trains_the_branches() -> None:
    model = randomise_batch_norm(ThreeBranches(4).eval(), seed=0).double()
    live, x = reparam.fuse(model, live=True), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    for form in (model, live):
        optimizer = torch.optim.AdamW(form.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            form(x).square().mean().backward()
            optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.allclose(named(live)[name], parameter, rtol=1e-9, atol=1e-9), name


def test_the_kernel_is_a_function_of_the_branches() -> None:
    model = randomise_batch_norm(ThreeBranches(4).eval(), seed=0).double()
    live = reparam.fuse(model, live=True)
    (row,) = live.reparam_report.fused
    operator = live.get_submodule(row.name)
    assert isinstance(operator, nn.Conv2d)
    assert torch.equal(operator.weight, reparam.fuse(model).get_submodule(row.name).weight)
    operator.weight.square().sum().backward()
    for name in ("dense.0.weight", "dense.1.weight", "point.0.weight", "skip.weight"):
        assert named(live)[name].grad.abs().max() > 0


def test_where_an_operator_stands_is_the_parameter_of_the_branch_that_stood_there() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    randomise_batch_norm(model, seed=0)
    live = reparam.fuse(model, live=True)
    assert [*live.state_dict()] == [*model.state_dict()]
    assert torch.equal(live.state_dict()["0.weight"], model[0].weight)
    assert not torch.equal(live[0].weight, model[0].weight)


@pytest.mark.parametrize("kind", ["deepcopy", "pickle", "save"])
def test_copies_compute_their_weights_of_their_own(kind: str) -> None:
    live = reparam.fuse(randomise_batch_norm(ThreeBranches(4).eval(), seed=0), live=True)
    if kind == "save":
        file = io.BytesIO()
        torch.save(live, file)
        file.seek(0)
        copied = torch.load(file, weights_only=False)
    else:
        copied = deepcopy(live) if kind == "deepcopy" else pickle.loads(pickle.dumps(live))
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(copied(x), live(x))
    moved(copied)
    assert not torch.equal(copied(x), live(x))
    copied.load_state_dict(live.state_dict())
    assert torch.equal(copied(x), live(x))


def test_another_type() -> None:
    model = randomise_batch_norm(ThreeBranches(4).eval(), seed=0)
    live = reparam.fuse(model, live=True).double()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    (row,) = live.reparam_report.fused
    assert live.get_submodule(row.name).weight.dtype == torch.float64
    assert torch.allclose(live(x), model.double()(x), rtol=1e-12, atol=1e-12)


def test_autocast_computes_the_kernel_as_exactly() -> None:
    live = reparam.fuse(training().float().eval(), live=True)
    operator = live.get_submodule("fused_conv")
    with torch.autocast("cpu", torch.bfloat16):
        inside = operator.weight
    assert inside.dtype == torch.float32
    assert torch.equal(inside, operator.weight)


def test_in_place_the_parameters_are_those_that_were_there() -> None:
    model = randomise_batch_norm(ThreeBranches(4).eval(), seed=0)
    parameters = dict(model.named_parameters())
    live = reparam.fuse(model, inplace=True, live=True)
    assert live is model
    assert all(named(live)[name] is parameters[name] for name in parameters)


def test_what_is_tied_stays_tied() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    model[3].weight = model[0].weight
    live = reparam.fuse(randomise_batch_norm(model.eval(), seed=0), live=True)
    assert (
        named(live)["3.weight"] is dict(live.named_parameters(remove_duplicate=False))["0.weight"]
    )


def test_a_graph_module_is_saved_by_its_state() -> None:
    model = fx.symbolic_trace(randomise_batch_norm(ThreeBranches(4).eval(), seed=0))
    live, x = reparam.fuse(model, live=True), torch.randn(2, 4, 8, 8)
    assert isinstance(live, fx.GraphModule)
    assert {*live.state_dict()} == {*model.state_dict()}
    assert torch.equal(deepcopy(live)(x), live(x))
    with pytest.raises(reparam.ReparamError, match="save its state_dict"):
        pickle.dumps(live)


def test_a_program_cannot_be_live() -> None:
    program = torch.export.export(ThreeBranches(4).eval(), (torch.randn(2, 4, 8, 8),))
    with pytest.raises(reparam.ReparamError, match="exported program cannot be live"):
        reparam.fuse(program, live=True)


@pytest.mark.parametrize("live", [False, True])
def test_a_live_model_is_not_fused_again(live: bool) -> None:
    model = reparam.fuse(randomise_batch_norm(ThreeBranches(4).eval(), seed=0), live=True)
    with pytest.raises(reparam.ReparamError, match=r"fused_conv is live already: `refresh"):
        reparam.fuse(model, live=live)


def test_gradients_of_gradients_and_checkpoints() -> None:
    model = randomise_batch_norm(ThreeBranches(4).eval(), seed=0).double()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    seconds = []
    for form in (model, reparam.fuse(model, live=True)):
        parameters = dict(form.named_parameters())
        y = checkpoint(form, x, use_reentrant=False)
        firsts = torch.autograd.grad(y.square().sum(), list(parameters.values()), create_graph=True)
        loss = sum(first.square().sum() for first in firsts)
        found = torch.autograd.grad(loss, list(parameters.values()))
        seconds.append(dict(zip(parameters, found, strict=True)))
    for name, gradient in seconds[0].items():
        bound = BOUND * float(gradient.abs().max())
        assert torch.allclose(seconds[1][name], gradient, rtol=0, atol=bound), name


def test_parameters_that_are_handed_in() -> None:
    model = randomise_batch_norm(ThreeBranches(4).eval(), seed=0).double()
    live, x = reparam.fuse(model, live=True), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    state = deepcopy(moved(deepcopy(model), 3).state_dict())
    ours, theirs = (torch.func.functional_call(form, state, (x,)) for form in (live, model))
    assert torch.allclose(ours, theirs, rtol=BOUND, atol=BOUND)


class Optional(nn.Module):
    """Runs its layer alone, too, where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 3), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        x = x if other is None else other
        return (self.layer(x.permute(0, 2, 3, 1)) * self.scale).permute(0, 3, 1, 2)


def test_what_stays_gives_the_same_bits() -> None:
    """Torch adds in another order for a weight that wants a gradient than for a frozen one."""
    torch.manual_seed(0)
    model = reparam.expand(Optional().double().eval(), blocks.mobile_one(2))
    live, fused = reparam.fuse(model, live=True), reparam.fuse(model)
    assert [row.place for row in fused.reparam_report.frozen] == ["scale", "layer"]
    x = torch.randn(3, 3, 9, 5, dtype=torch.float64)
    with torch.no_grad():
        for given in ((x,), (x, -x)):
            assert torch.equal(live(*given), fused(*given))


def test_a_rule_that_nobody_has_seen_compute() -> None:
    def unseen(module: Computed, x: reparam.AffineConv) -> Any:
        return x.scale(torch.from_numpy(module.weight.detach().numpy()), axis=-3)

    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.PReLU(6)).eval()
    with pytest.raises(reparam.ReparamError, match=r"^0 cannot be live: its rule"):
        reparam.fuse(model, rules={nn.PReLU: unseen}, live=True, verify=False)


class ScaledNorm(nn.Module):
    """A batch norm that takes a scale in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.scale = nn.BatchNorm2d(4), nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(x) * self.scale)


def test_a_live_batch_norm_keeps_its_statistics() -> None:
    model = randomise_batch_norm(ScaledNorm().eval(), seed=0).double()
    live, x = reparam.fuse(model, live=True), torch.randn(8, 4, 5, 5, dtype=torch.float64)
    (row,) = live.reparam_report.fused
    assert isinstance(live.get_submodule(row.name), nn.BatchNorm2d)
    before = deepcopy(live.state_dict())
    expected = live(x)
    assert torch.equal(live.train()(x), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in live.state_dict().items())
    assert_same_gradients(live, model, (x,))
