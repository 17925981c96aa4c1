"""The training loop: what is trained, and in which precision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam import ReparamError
from repvgg.data.digits import predict, split_digits, training_digits
from repvgg.models.backbone import Stage
from repvgg.training.loop import TrainingState, train, train_steps
from repvgg.training.networks import small_repvgg
from repvgg.training.processes import Processes
from repvgg.training.recipes import DIGITS, Recipe
from tests.support.thinning import thinned

ONE = replace(DIGITS, epochs=1, warmup_epochs=0)


def trained(recipe: Recipe, seed: int = 0) -> tuple[nn.Module, list[float]]:
    model = small_repvgg(seed)
    state = TrainingState(model, recipe, Processes())
    samples = training_digits(split_digits(0), seed)
    losses = train_steps(state, samples, seed=seed)
    return model, [float(loss) for loss in losses]


def test_training_can_be_repeated_whatever_was_drawn_before() -> None:
    models = []
    for _ in range(2):
        torch.rand(1)
        before = torch.get_rng_state()
        models.append(trained(ONE)[0].state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not torch.equal(models[0]["linear.weight"], trained(ONE, seed=1)[0].linear.weight)


def test_the_model_is_left_in_evaluation_mode() -> None:
    model = small_repvgg(0)
    train(model, training_digits(split_digits(0), 0), ONE, seed=0)
    assert not model.training


def test_frozen_batch_norms_keep_their_statistics() -> None:
    frozen, moving = trained(replace(ONE, freeze_bn=True))[0], trained(ONE)[0]
    name = "stage1.0.rbr_dense.bn.running_mean"
    assert torch.equal(frozen.get_buffer(name), small_repvgg(0).get_buffer(name))
    assert not torch.equal(moving.get_buffer(name), small_repvgg(0).get_buffer(name))


@pytest.mark.parametrize(
    "values",
    thinned(
        [
            ({"mixup": 0.2},),
            ({"precision": "bfloat16"},),
            ({"precision": "float16", "learning_rate": 0.05},),
            ({"nesterov": False, "momentum": 0.0},),
            ({"grad_checkpointing": True},),
        ],
        3,
    ),
)
def test_the_loss_falls(values: dict[str, Any]) -> None:
    _, losses = trained(replace(ONE, **values))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_checkpointing_changes_nothing() -> None:
    model, losses = trained(replace(ONE, grad_checkpointing=True))
    assert all(stage.checkpointing for stage in model.modules() if isinstance(stage, Stage))
    assert losses == trained(ONE)[1]


def test_the_average_follows_the_weights() -> None:
    model = small_repvgg(0)
    recipe = replace(ONE, average_decay=0.5)
    state = TrainingState(model, recipe, Processes())
    samples = training_digits(split_digits(0), 0)
    history: list[Tensor] = []
    for _ in train_steps(state, samples, seed=0):
        history.append(model.linear.weight.detach().clone())
        if len(history) == 3:
            break
    expected = history[0]
    for weight in history[1:]:
        expected = 0.5 * expected + 0.5 * weight
    torch.testing.assert_close(state.evaluated.get_parameter("linear.weight"), expected)


@pytest.mark.parametrize(("setting", "message"), [("sync_bn", "GPUs"), ("channels_last", "GPUs")])
def test_what_needs_a_gpu_says_so(setting: str, message: str) -> None:
    with pytest.raises(ReparamError, match=message):
        TrainingState(small_repvgg(0), replace(ONE, **{setting: True}), Processes())


def test_too_few_images_for_a_batch_are_an_error() -> None:
    with pytest.raises(ReparamError, match="1437 images to train on, fewer than the 2000"):
        trained(replace(ONE, batch_size=2000))


def test_training_learns_to_read() -> None:
    digits = split_digits(seed=0)
    model = small_repvgg(seed=0)
    recipe = replace(DIGITS, epochs=4, warmup_epochs=1)
    train(model, training_digits(digits, 0), recipe, seed=0)
    predictions = predict(model, digits.held_out_images)
    accuracy = (predictions == digits.held_out_labels).double().mean()
    assert accuracy > 0.95
