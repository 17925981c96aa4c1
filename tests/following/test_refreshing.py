"""A fused model is brought up to date: bit for bit what a new one would be, or an error."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import reparam
from reparam.fusing import driver
from tests.following.moving import moved
from tests.models.catalogue import BLOCKS
from tests.models.diverse_branch import DiverseBranch
from tests.models.test_blocks import trained
from tests.support.blocks import ThreeBranches
from tests.support.randomise import randomise_batch_norm


def network() -> nn.Module:
    """Branches, a chain, and layers that are not fused."""
    chain = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1)
    model = nn.Sequential(ThreeBranches(4), *chain, nn.PReLU(6))
    return randomise_batch_norm(model.eval(), seed=0)


def assert_same(fused: nn.Module, fresh: nn.Module) -> None:
    """Asserts that two fused models hold the same, bit for bit."""
    ours, theirs = fused.state_dict(), fresh.state_dict()
    assert [*ours] == [*theirs]
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
        assert tensor.dtype == theirs[name].dtype
        assert tensor.stride() == theirs[name].stride()


@pytest.mark.parametrize("block", [pytest.param(block, id=block.name) for block in BLOCKS])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_block_follows_training(block: Any, dtype: torch.dtype) -> None:
    model = deepcopy(trained(block, dtype))
    fused = reparam.fuse(model)
    for seed in range(2):
        moved(model, seed)
        assert reparam.refresh(fused, model) is fused
        assert_same(fused, reparam.fuse(model))


def test_nothing_is_traced_or_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    fused = reparam.fuse(model)
    fresh = reparam.fuse(moved(model))
    for name in ("find_parts", "_decided"):
        monkeypatch.setattr(driver, name, None)
    assert_same(reparam.refresh(fused, model), fresh)


def test_the_mode_of_the_model_does_not_matter() -> None:
    model = network()
    fused = reparam.fuse(model)
    fresh = reparam.fuse(moved(model))
    assert_same(reparam.refresh(fused, model.train()), fresh)
    assert model.training
    assert not any(module.training for module in fused.modules())


def test_what_a_plan_made() -> None:
    model = network()
    plan = reparam.plan(model)
    fused = plan.apply()
    assert_same(reparam.refresh(fused, moved(model)), reparam.fuse(model))


def test_what_was_fused_in_place_follows_a_copy() -> None:
    model = network()
    copied = deepcopy(model)
    fused = reparam.fuse(model, inplace=True)
    assert_same(reparam.refresh(fused, moved(copied)), reparam.fuse(copied))


def test_an_average() -> None:
    model = network()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    fused = reparam.fuse(model)
    average.update_parameters(moved(model, 1))
    average.update_parameters(moved(model, 2))
    assert_same(reparam.refresh(fused, average.module), reparam.fuse(average.module))
    with pytest.raises(reparam.ReparamError, match="is not there any more"):
        reparam.refresh(fused, average)


def test_a_live_form() -> None:
    model = network()
    live, fused = reparam.fuse(model, live=True), reparam.fuse(model)
    moved(live)
    model.load_state_dict(live.state_dict())
    assert_same(reparam.refresh(fused, live), reparam.fuse(model))
    moved(model, 1)
    reparam.refresh(live, model)
    assert all(torch.equal(live.state_dict()[n], t) for n, t in model.state_dict().items())


def saved(model: nn.Module) -> nn.Module:
    """The model as torch saves and loads it as a whole."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": deepcopy,
    "half": lambda model: deepcopy(model).half(),
    "bfloat16": lambda model: deepcopy(model).bfloat16(),
    "double": lambda model: deepcopy(model).double(),
    "channels last": lambda model: deepcopy(model).to(memory_format=torch.channels_last),
    "saved whole": saved,
    "an average": lambda model: AveragedModel(model).module,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies(kind: str) -> None:
    model = network()
    fused = COPIES[kind](reparam.fuse(model))
    parameters = [*fused.parameters()]
    assert_same(reparam.refresh(fused, moved(model)), COPIES[kind](reparam.fuse(model)))
    assert all(a is b for a, b in zip(fused.parameters(), parameters, strict=True))


def test_a_state_that_was_loaded_into_another_fused_model() -> None:
    """What holds the state of a fused model follows the model that it is of."""
    model, other = network(), moved(network(), 1)
    state, fused = deepcopy(reparam.fuse(moved(model)).state_dict()), reparam.fuse(other)
    fused.load_state_dict(state)
    assert_same(fused, reparam.fuse(model))
    assert_same(reparam.refresh(fused, moved(model)), reparam.fuse(model))
    assert_same(reparam.refresh(fused, other), reparam.fuse(other))


def test_a_pruned_model() -> None:
    model = network()
    fused = reparam.fuse(model)
    prune.random_unstructured(model[1], "weight", 0.5)
    assert_left(fused, model, r"1\.weight_orig is a parameter that was not there")
    pruned = reparam.fuse(model)
    assert_same(reparam.refresh(pruned, moved(model)), reparam.fuse(model))


@pytest.mark.parametrize("keep", ["2", nn.BatchNorm2d, "0.*"])
def test_what_is_kept_is_copied(keep: Any) -> None:
    model = network()
    fused = reparam.fuse(model, keep=keep)
    fresh = reparam.fuse(moved(model), keep=keep)
    assert_same(reparam.refresh(fused, model), fresh)


def test_a_channels_last_model() -> None:
    model = network().to(memory_format=torch.channels_last)
    fused = reparam.fuse(model)
    assert_same(reparam.refresh(fused, moved(model)), reparam.fuse(model))


def test_a_graph_module() -> None:
    model = fx.symbolic_trace(network())
    fused = reparam.fuse(model)
    assert_same(reparam.refresh(fused, moved(model)), reparam.fuse(model))


def test_a_model_of_which_nothing_is_fused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    fused = reparam.fuse(model)
    assert_same(reparam.refresh(fused, moved(model)), model)


def test_norms_without_weights() -> None:
    model = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4)).eval()
    fused = reparam.fuse(moved(model), fold_norms=True)
    assert_same(reparam.refresh(fused, moved(model)), reparam.fuse(model, fold_norms=True))


class Scaled(nn.Module):
    """A layer of which only a custom rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(6))
        self.power = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.scale**2).unsqueeze(-1).unsqueeze(-1)


def rule(module: Scaled, x: reparam.AffineConv) -> Any:
    return x.scale(module.scale**2, axis=-3)


def asking_rule(module: Scaled, x: reparam.AffineConv) -> Any:
    return x.scale(module.scale ** module.power.item(), axis=-3)


def test_what_a_rule_computes_is_computed_again() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), Scaled()).eval()
    fused = reparam.fuse(model, rules={Scaled: rule})
    fresh = reparam.fuse(moved(model), rules={Scaled: rule})
    assert_same(reparam.refresh(fused, model), fresh)


def test_numbers_that_a_rule_asked_for() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), Scaled()).eval()
    fused = reparam.fuse(model, rules={Scaled: asking_rule})
    with torch.no_grad():
        model[1].scale.add_(1)
    fresh = reparam.fuse(model, rules={Scaled: asking_rule})
    assert_same(reparam.refresh(fused, model), fresh)
    with torch.no_grad():
        model[1].power.add_(1)
    assert_left(fused, model, "0 cannot be what it was: its rule asked for numbers")


def assert_left(fused: nn.Module, model: nn.Module, match: str) -> None:
    """Asserts that refreshing raises an error, and changes nothing."""
    before = deepcopy(fused.state_dict())
    with pytest.raises(reparam.ReparamError, match=match):
        reparam.refresh(fused, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in fused.state_dict().items())


def registers_another(model: nn.Module) -> None:
    parametrizations.weight_norm(model[0].dense[0])


def widens(model: nn.Module) -> None:
    model[5] = nn.PReLU(1)


def converts(model: nn.Module) -> None:
    model[1].half()


def adds_a_bias(model: nn.Module) -> None:
    model[0].dense[0].bias = nn.Parameter(torch.zeros(4))


def ties(model: nn.Module) -> None:
    model[0].skip.weight = model[0].dense[1].weight


def changes_eps(model: nn.Module) -> None:
    model[2].eps = 0.1


CHANGES: dict[Callable[[nn.Module], None], str] = {
    registers_another: r"0\.dense\.0\.weight is not there any more",
    widens: r"5\.weight has the shape \(1,\) and had \(6,\)",
    converts: r"1\.bias is of type torch.float16 and was of torch.float32",
    adds_a_bias: r"0\.dense\.0\.bias is a parameter that was not there",
    ties: r"0\.skip\.weight is now the same tensor as 0\.dense\.1\.weight",
    changes_eps: r"2 is BatchNorm2d\(6, eps=0\.1,.*and was \(6, eps=1e-05",
}


@pytest.mark.parametrize("change", [*CHANGES], ids=lambda change: change.__name__)
def test_another_structure(change: Callable[[nn.Module], None]) -> None:
    model = network()
    fused = reparam.fuse(model)
    moved(model)
    change(model)
    assert_left(fused, model, CHANGES[change])


class Padded(nn.Module):
    """Pads with numbers of its own, which are what the first convolution gives outside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 3, bias=False)
        self.border = nn.Parameter(self.inner.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.pad(self.inner(x), (1, 1, 1, 1))
        border = self.border.view(1, -1, 1, 1)
        y[:, :, :1] = border
        y[:, :, -1:] = border
        y[..., :1] = border
        y[..., -1:] = border
        return self.outer(y)


def test_a_padding_that_is_not_the_bias_any_more() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Padded()).eval()
    fused = reparam.fuse(model)
    assert len(fused.reparam_report.fused) == 2
    with torch.no_grad():
        model[3].inner.bias.add_(1)
        model[3].border.add_(1)
    assert_same(reparam.refresh(fused, model), reparam.fuse(model))
    live = reparam.fuse(model, live=True)
    with torch.no_grad():
        moved(model).get_parameter("3.border").add_(1)
    assert_left(fused, model, r"3\.\w+ cannot be what it was: padding with a value")
    live.load_state_dict(model.state_dict())
    with pytest.raises(reparam.ReparamError, match="padding with a value"):
        live(torch.randn(2, 4, 8, 8))


def test_a_block_that_pads_with_its_own_bias() -> None:
    model = randomise_batch_norm(DiverseBranch(4, 6).eval(), seed=0)
    fused = reparam.fuse(model)
    assert_same(reparam.refresh(fused, moved(model)), reparam.fuse(model))


def test_numbers_that_decided_what_code_does() -> None:
    class Switched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = ThreeBranches(4)
            self.register_buffer("on", torch.tensor(1.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.branches(x) if self.on > 0 else x

    model = randomise_batch_norm(Switched().eval(), seed=0)
    fused = reparam.fuse(model, torch.randn(1, 4, 8, 8))
    moved(model)
    model.on.zero_()
    assert_left(fused, model, "on holds other numbers")


def test_weights_that_are_not_finite() -> None:
    model = network()
    fused = reparam.fuse(model)
    with torch.no_grad():
        moved(model)[2].weight[0] = torch.inf
    with pytest.raises(reparam.ReparamError, match="the new weights of 1 are not finite"):
        reparam.refresh(fused, model)
    (branches, *_) = fused.reparam_report.fused
    operator = reparam.fuse(model).get_submodule(branches.name)
    assert torch.equal(fused.get_submodule(branches.name).weight, operator.weight)


def test_weights_that_lose_digits() -> None:
    model = network().half()
    fused = reparam.fuse(model)
    with torch.no_grad():
        model[2].weight.fill_(1e-6)
        model[2].bias.zero_()
        model[2].running_mean.zero_()
        model[1].bias.zero_()
    with pytest.raises(reparam.ReparamError, match=r"the new weights of 1 .*lose digits"):
        reparam.refresh(fused, model)


def test_what_knows_no_original() -> None:
    model = network()
    fused = reparam.fuse(model)
    with pytest.raises(reparam.ReparamError, match="does not know what it was fused of"):
        reparam.refresh(model, model)
    with pytest.raises(reparam.ReparamError, match="does not know what it was fused of"):
        reparam.refresh(fused[0], model)
    with pytest.raises(reparam.ReparamError, match=r"expected a torch\.nn\.Module, found str"):
        reparam.refresh(fused, "model")
    program = reparam.fuse(torch.export.export(model, (torch.randn(2, 4, 8, 8),)))
    with pytest.raises(reparam.ReparamError, match="exported program cannot be refreshed"):
        reparam.refresh(program, model)


def test_an_operator_that_was_exchanged() -> None:
    model = network()
    fused = reparam.fuse(model)
    fused[1] = nn.Conv2d(4, 6, 1)
    assert_left(fused, model, "1 is another operator than the one that was fused")


def numpy_rule(module: Scaled, x: reparam.AffineConv) -> Any:
    return x.scale(torch.from_numpy(module.scale.detach().numpy() ** 2), axis=-3)


def vmapped_rule(module: Scaled, x: reparam.AffineConv) -> Any:
    return x.scale(torch.vmap(torch.square)(module.scale) * 1, axis=-3)


@pytest.mark.parametrize("unseen", [numpy_rule, vmapped_rule])
def test_what_nobody_has_seen_a_rule_compute(unseen: Any) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), Scaled()).eval()
    fused = reparam.fuse(model, rules={Scaled: unseen})
    assert_left(fused, moved(model), "0 cannot be what it was: its rule")


STANDARD = torch.rand(6, dtype=torch.float64)


def test_constants_of_a_rule() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.PReLU(), nn.Conv2d(6, 6, 1), Scaled()).eval()

    def by_constant(module: Scaled, x: reparam.AffineConv) -> Any:
        scaled = x.scale(STANDARD, axis=-3)
        assert isinstance(scaled, reparam.AffineConv)
        return scaled.scale(module.scale + torch.ones(6), axis=-3)

    def fuse() -> nn.Module:
        return reparam.fuse(model, rules={Scaled: by_constant}, verify=False)

    fused = fuse()
    moved(model)
    assert_same(reparam.refresh(fused, model), fuse())


class Halved:
    """A function that cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("it stays here")

    def __call__(self, x: Tensor) -> Tensor:
        return x / 2


def test_saved_without_its_recipes() -> None:
    model = network()
    fused = reparam.fuse(model)
    book = vars(fused)["reparam_recipes"]
    vars(fused)["reparam_recipes"] = replace(book, settings={"0": Halved()})
    loaded = pickle.loads(pickle.dumps(fused))
    assert_same(loaded, fused)
    assert_left(loaded, model, "what its operators are computed of could not be saved")
