"""Hooks on what would be fused: they run as before, with the values that they saw before."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as everywhere
from torch.nn.utils import parametrizations, parametrize, prune

import reparam
from tests.cases.checking import assert_exact
from tests.refusals.checking import assert_reported, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run

C = 4
SEEN: list[Any] = []
"""What the hooks saw; a hook that is a function at the top is one and the same in every copy."""


def see(*values: Any) -> None:
    SEEN.append([v.detach().clone() for v in values[-1:] if isinstance(v, Tensor)])


def see_input(module: nn.Module, args: tuple[Any, ...]) -> None:
    see(args[0])


def see_output(module: nn.Module, args: Any, output: Any) -> None:
    see(output)


def halve_input(module: nn.Module, args: tuple[Any, ...]) -> Any:
    return (args[0] * 0.5 + 1,)


def clamp_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.clamp(-0.1, 0.1)


def see_keywords(module: nn.Module, args: Any, kwargs: Any) -> None:
    see(args[0])


def see_gradient(module: nn.Module, gradient: Any, *more: Any) -> None:
    see(gradient[0])


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "forward": lambda m: m.register_forward_hook(see_output),
    "forward, always": lambda m: m.register_forward_hook(see_output, always_call=True),
    "forward, changing": lambda m: m.register_forward_hook(clamp_output),
    "before": lambda m: m.register_forward_pre_hook(see_input),
    "before, changing": lambda m: m.register_forward_pre_hook(halve_input),
    "before, with keywords": lambda m: m.register_forward_pre_hook(see_keywords, with_kwargs=True),
    "gradient": lambda m: m.register_full_backward_hook(see_gradient),
    "gradient, before": lambda m: m.register_full_backward_pre_hook(see_gradient),
}
PLACES = ("0", "0.0", "0.1", "")


def nested() -> nn.Module:
    block = nn.Sequential(nn.Conv2d(C, C, 3), nn.BatchNorm2d(C))
    return ready(nn.Sequential(block, nn.ReLU(), nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)))


def seen_by(model: nn.Module, x: Tensor) -> list[Any]:
    SEEN.clear()
    x = x.clone().requires_grad_()
    model(x).square().sum().backward()
    return [*SEEN, x.grad]


@pytest.mark.parametrize("place", PLACES, ids=["block", "convolution", "norm", "model"])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_runs_and_sees_the_same_values(hook: str, place: str) -> None:
    """torch.fx's fuser, measured: hooks on a fused module do not fire, or see other values."""
    model = nested()
    HOOKS[hook](model.get_submodule(place))
    fused = assert_exact(model, images())
    expected = seen_by(deepcopy(model), images())
    assert relative_error(seen_by(fused, images()), expected) <= 1e-9
    if "." in place:
        assert_reported(fused.reparam_report, place, "hooks")
    else:  # inside, nothing is observed
        assert isinstance(fused[0][1], nn.Identity)


@pytest.mark.parametrize("place", PLACES, ids=["block", "convolution", "norm", "model"])
def test_a_hook_that_is_gone_is_none(place: str) -> None:
    """A handle that was removed leaves nothing behind."""
    model = nested()
    model.get_submodule(place).register_forward_hook(see_output).remove()
    assert_exact(model, images(), total=3)


REGISTERED = [
    everywhere.register_module_forward_hook,
    everywhere.register_module_forward_pre_hook,
    everywhere.register_module_full_backward_hook,
]


@pytest.fixture(params=REGISTERED, ids=lambda register: register.__name__)
def hook_on_everything(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    names: list[str] = []
    handle = request.param(lambda module, *values: names.append(type(module).__name__))
    yield names
    handle.remove()


def test_a_hook_on_every_module_does_not_break_fusing(hook_on_everything: list[str]) -> None:
    """A profiler's hooks are there while the model is fused."""
    model = nested()
    fused = reparam.fuse(model)
    expected, actual = run(model, (images(),)), run(fused, (images(),))
    assert relative_error(actual, expected) <= 1e-9


STATE_HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "saving": lambda m: m.register_state_dict_post_hook(lambda *args: None),
    "before saving": lambda m: m.register_state_dict_pre_hook(lambda *args: None),
    "loading": lambda m: m.register_load_state_dict_pre_hook(lambda *args: None),
    "after loading": lambda m: m.register_load_state_dict_post_hook(lambda *args: None),
}


@pytest.mark.parametrize("hook", STATE_HOOKS)
@pytest.mark.parametrize("place", PLACES, ids=["block", "convolution", "norm", "model"])
def test_a_hook_on_the_state_does_not_matter_to_forward(place: str, hook: str) -> None:
    """Hooks of saving and loading see nothing of a forward."""
    model = nested()
    STATE_HOOKS[hook](model.get_submodule(place))
    fused = assert_exact(model, images())
    fused.load_state_dict(fused.state_dict())


# -- Weights that a hook or a parametrization computes --------------------------------------------


class Halved(nn.Module):
    """A parametrization of one's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * 0.5


class Symmetric(nn.Module):
    """A parametrization with a way back."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + weight.flip(-1)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight * 0.5


def half_norm(model: nn.Module) -> None:
    parametrize.register_parametrization(model[1], "weight", Halved())
    parametrize.register_parametrization(model[1], "bias", Halved())


PARAMETRIZATIONS: dict[str, Callable[[nn.Module], Any]] = {
    "weight_norm": lambda m: parametrizations.weight_norm(m[0]),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m[0]),
    "orthogonal": lambda m: parametrizations.orthogonal(m[0]),
    "own": lambda m: parametrize.register_parametrization(m[0], "weight", Symmetric()),
    "two": lambda m: [
        parametrize.register_parametrization(m[0], "weight", Halved()) for _ in range(2)
    ],
    "bias": lambda m: parametrize.register_parametrization(m[0], "bias", Halved()),
}
OLD: dict[str, Callable[[nn.Module], Any]] = {
    "weight_norm": lambda m: nn.utils.weight_norm(m[0]),
    "spectral_norm": lambda m: nn.utils.spectral_norm(m[0]),
    "pruned": lambda m: prune.l1_unstructured(m[0], "weight", 0.5),
    "pruned channels": lambda m: prune.ln_structured(m[0], "weight", 0.5, 2, 0),
    "pruned norm": lambda m: prune.random_unstructured(m[1], "weight", 0.5),
}


@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
def test_a_parametrized_weight_is_fused(kind: str) -> None:
    """`torch.nn.utils.parametrizations` compute the weight from others each time it is read."""
    model = ready(nn.Sequential(nn.Conv2d(C, C, 3), nn.BatchNorm2d(C)))
    PARAMETRIZATIONS[kind](model)
    assert_exact(model.eval(), images(), total=1)


def test_a_parametrized_batch_norm_is_fused() -> None:
    """Its forward checks the rank of its input, and its scale is computed."""
    model = ready(nn.Sequential(nn.Conv2d(C, C, 3), nn.BatchNorm2d(C)))
    half_norm(model)
    fused = assert_exact(model.eval(), images())
    assert count_operators(fused, (images(),)).batch_norms == 0


def test_a_parametrized_weight_inside_cached_is_fused() -> None:
    """Fusing within `parametrize.cached()` leaves no value in the cache that was not there."""
    model = ready(nn.Sequential(nn.Conv2d(C, C, 3), nn.BatchNorm2d(C)))
    parametrizations.weight_norm(model[0]).eval()
    expected = run(model, (images(),))
    with parametrize.cached():
        fused = reparam.fuse(model)
        assert all(isinstance(value, Tensor) for value in parametrize._cache.values())
        inside = run(fused, (images(),))
    for actual in (inside, run(fused, (images(),)), run(model, (images(),))):
        assert relative_error(actual, expected) <= 1e-9


def hooked(kind: str, *more: nn.Module) -> nn.Module:
    model = ready(nn.Sequential(nn.Conv2d(C, C, 3), nn.BatchNorm2d(C), *more))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        OLD[kind](model)
    run(model.eval(), (images(),))  # of a weight that has a gradient there are no copies
    return model


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "pruned", "pruned channels"])
def test_a_weight_that_a_hook_computes_is_fused(kind: str) -> None:
    """The older `weight_norm`, `spectral_norm` and pruning set the weight in a pre-hook."""
    model, x = hooked(kind), images()
    weight = model[0].weight
    fused = assert_exact(model, x, total=1)
    names = {name.rpartition("_")[2] for name in fused.state_dict()}
    assert names.isdisjoint({"g", "v", "u", "orig", "mask"})
    again = deepcopy(fused)
    again.load_state_dict(fused.state_dict())
    assert relative_error(run(again, (x,)), run(model, (x,))) <= 1e-9
    if "pruned" in kind:
        (new,) = (p for n, p in fused.named_parameters() if n.endswith("weight"))
        assert torch.equal(new == 0, weight == 0)
    again.train()(x).sum().backward()
    optimizer = torch.optim.SGD(again.parameters(), 0.1)
    optimizer.step()
    assert relative_error(run(again.eval(), (x,)), run(model, (x,))) > 1e-3


def test_after_a_training_step_it_is_fused_as_well() -> None:
    model, x = hooked("weight_norm").train(), images()
    model(x).sum().backward()
    fused = reparam.fuse(model.eval())
    assert count_operators(fused, (x,)).total == 1
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-9


class Chosen(nn.Module):
    """Its code cannot be traced, and may run the layer alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm = layer, nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return self.norm(y) if y.sum() > 0 else y


@pytest.mark.parametrize("kind", ["weight_norm", "pruned"])
def test_a_hooked_layer_that_stays_goes_on_computing_its_weight(kind: str) -> None:
    model, x = ready(Chosen(hooked(kind)[0])), images()
    fused = assert_exact(model, x)
    with torch.no_grad():
        for network in (model, fused):
            network.get_parameter("layer.weight_g" if "norm" in kind else "layer.weight_orig").mul_(
                -1.5
            )
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-9


def test_a_hooked_layer_that_is_observed_too_stays() -> None:
    model = hooked("weight_norm")
    model[0].register_forward_hook(see_output)
    fused = assert_exact(model, images())
    assert_reported(fused.reparam_report, "0", "hooks")


def test_a_pruned_norm_is_fused() -> None:
    fused = assert_exact(hooked("pruned norm"), images())
    assert count_operators(fused, (images(),)).batch_norms == 0


class OwnPruning(prune.L1Unstructured):
    """One that does more than to multiply by a mask."""

    def apply_mask(self, module: nn.Module) -> Tensor:
        mask: Tensor = super().apply_mask(module)
        SEEN.append(mask)
        return mask


def test_pruning_that_does_more_stays() -> None:
    model = ready(nn.Sequential(nn.Conv2d(C, C, 3), nn.BatchNorm2d(C)))
    OwnPruning.apply(model[0], "weight", 0.5)
    run(model, (images(),))
    fused = assert_exact(model, images())
    assert_reported(fused.reparam_report, "0", "hooks")


def test_pruning_made_permanent_is_fused() -> None:
    """`prune.remove` gives an ordinary weight with zeros."""
    model = ready(nn.Sequential(nn.Conv2d(C, C, 3), nn.BatchNorm2d(C)))
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.remove(model[0], "weight")
    fused = assert_exact(model, images(), total=1)
    assert count_operators(fused, (images(),)).convolutions == 1
    assert bool((fused[0].weight == 0).sum() == (model[0].weight == 0).sum())
