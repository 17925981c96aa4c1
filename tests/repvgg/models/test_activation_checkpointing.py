"""Training that computes activations twice does what training does, with less memory."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import reparam
import repvgg
from repvgg import RepVGG, RepVGGConfig, RepVGGFeatures
from tests.support.errors import run
from tests.support.images import random_images
from tests.support.small_repvgg import CONFIGS, build

IMAGES = random_images(4, 64, seed=2).double()


def train_step(model: nn.Module) -> int:
    """Computes gradients; returns how many numbers were kept for that."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        outputs = model.train()(IMAGES)
        tensors = outputs.values() if isinstance(outputs, dict) else [outputs]
        loss: Any = sum(tensor.square().mean() for tensor in tensors)
    loss.backward()
    return kept


def gradients(model: nn.Module) -> list[Tensor]:
    assert all(parameter.grad is not None for parameter in model.parameters())
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def assert_equal(first: list[Tensor], second: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("name", "compiled"), [("plain", False), ("plus", False), ("plus", True)])
def test_gradients_and_statistics_stay_the_same(name: str, compiled: bool) -> None:
    model = build(name).double()
    twin = deepcopy(model)
    twin.set_grad_checkpointing()
    before = deepcopy(model.state_dict())
    trained: Any = torch.compile(twin, backend="aot_eager") if compiled else twin
    for _ in range(2):
        train_step(model)
        train_step(trained)
    assert_equal(gradients(twin), gradients(model))
    assert_equal(list(twin.state_dict().values()), list(model.state_dict().values()))
    moved = [
        not torch.equal(tensor, before[name])
        for name, tensor in model.state_dict().items()
        if name.endswith("running_mean")
    ]
    assert all(moved)


def test_less_is_kept_and_it_can_be_switched_off() -> None:
    config = RepVGGConfig((2, 2, 2, 2), (8, 8, 8, 8, 8), strides=(2, 1, 1, 1, 1))
    model = RepVGG(config).double()
    all_kept = train_step(model)
    model.set_grad_checkpointing()
    assert train_step(model) < all_kept / 3
    model.set_grad_checkpointing(enable=False)
    assert train_step(model) == all_kept


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_that_has_it_enabled_is_fused_as_any_other(name: str) -> None:
    model = build(name)
    expected = reparam.fuse(model)
    model.set_grad_checkpointing()
    fused = reparam.fuse(model)
    assert str(fused.reparam_report) == str(expected.reparam_report)
    assert torch.equal(run(fused, [IMAGES.float()]), run(expected, [IMAGES.float()]))


def test_a_fused_model_trains_with_it() -> None:
    fused = reparam.fuse(build("plus").double())
    twin = deepcopy(fused)
    twin.set_grad_checkpointing()
    train_step(fused)
    train_step(twin)
    assert_equal(gradients(twin), gradients(fused))


def test_evaluation_keeps_what_its_gradients_need() -> None:
    model = build("plain").double()
    model.set_grad_checkpointing()
    x = IMAGES.clone().requires_grad_()
    model(x).sum().backward()
    expected, x.grad = x.grad, None
    model.set_grad_checkpointing(enable=False)
    model(x).sum().backward()
    assert expected is not None
    assert x.grad is not None
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("features_only", [False, True])
def test_it_can_be_asked_for_when_a_model_is_created(features_only: bool) -> None:
    with torch.device("meta"):
        models = [
            repvgg.create_model("repvgg_a0", features_only=features_only, checkpointing=value)
            for value in (False, True)
        ]
    assert isinstance(models[0], RepVGGFeatures if features_only else RepVGG)
    assert [model.get_submodule("stage3").checkpointing for model in models] == [False, True]
