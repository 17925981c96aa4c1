"""The training loop: what is trained, by which recipe, and in which precision."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repvgg
from reparam import ReparamError
from repvgg.backbone import Stage
from repvgg.digits import small_repvgg, split_digits, training_digits
from repvgg.losses import training_loss
from repvgg.networks import build_network
from repvgg.optimization import learning_rate, make_optimizer
from repvgg.processes import Processes
from repvgg.recipes import DIGITS, PLUS, Recipe, recipe_for
from repvgg.sampling import TrainingBatches
from repvgg.training import TrainingState, train, train_steps

ONE = replace(DIGITS, epochs=1, warmup_epochs=0)


def trained(recipe: Recipe, seed: int = 0) -> tuple[nn.Module, list[float]]:
    model = small_repvgg(seed)
    state = TrainingState(model, recipe, Processes())
    samples = training_digits(split_digits(0), seed)
    losses = train_steps(state, samples, recipe, seed=seed, processes=Processes())
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
    [
        {"precision": "bfloat16"},
        {"precision": "float16", "learning_rate": 0.05},
        {"mixup": 0.2},
        {"grad_checkpointing": True},
        {"nesterov": False, "momentum": 0.0},
    ],
    ids=str,
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
    for _ in train_steps(state, samples, recipe, seed=0, processes=Processes()):
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


# -- Recipes --------------------------------------------------------------------------------------


def test_the_recipes_are_those_of_the_paper() -> None:
    plain = recipe_for("repvgg_a0")
    assert (plain.epochs, plain.batch_size, plain.learning_rate) == (120, 256, 0.1)
    assert (plain.momentum, plain.weight_decay, plain.mixup) == (0.9, 1e-4, 0)
    strong = recipe_for("repvgg_b3g4")
    assert (strong.epochs, strong.label_smoothing, strong.mixup) == (200, 0.1, 0.2)
    assert strong.rand_augment
    assert strong.warmup_epochs == plain.warmup_epochs == 0
    plus = recipe_for("repvggplus_l2pse")
    assert plus == PLUS
    assert (plus.train_size, plus.test_size, plus.weight_decay) == (256, 320, 4e-5)
    assert plus.warmup_epochs == 5
    assert recipe_for("repvgg_a0", digits=True) == DIGITS


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"mixup": float("inf")},
        {"rand_augment": 31},
        {"warmup_epochs": 120},
        {"precision": "int8"},
        {"nesterov": True, "momentum": 0.0},
        {"freeze_bn": True, "sync_bn": True},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused_with_its_name(values: dict[str, Any]) -> None:
    with pytest.raises(ReparamError, match=next(iter(values))):
        Recipe(**values)


def test_the_learning_rate_rises_and_falls_to_nothing() -> None:
    recipe = Recipe(epochs=10, warmup_epochs=2, learning_rate=0.3)
    rates = [learning_rate(recipe, step, 7) for step in range(70)]
    assert max(rates) == pytest.approx(0.3)
    assert rates[:14] == sorted(rates[:14])
    assert rates[14:] == sorted(rates[14:], reverse=True)
    assert rates[-1] < 0.001


@pytest.mark.parametrize("name", ["repvgg_a0", "repvggplus_l2pse"])
def test_biases_and_batch_norms_of_convolutions_are_spared_from_decay(name: str) -> None:
    with torch.device("meta"):
        model = repvgg.create_model(name)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = make_optimizer(model, Recipe()).param_groups
    assert decayed["weight_decay"] == 1e-4
    assert spared["weight_decay"] == 0
    spared_names = {names[id(parameter)] for parameter in spared["params"]}
    decayed_names = {names[id(parameter)] for parameter in decayed["params"]}
    assert spared_names | decayed_names == set(names.values())
    assert {"stage0.rbr_dense.bn.weight", "stage0.rbr_1x1.bn.weight", "linear.bias"} <= spared_names
    assert {"stage0.rbr_dense.conv.weight", "linear.weight"} <= decayed_names
    identity = next(name for name in names.values() if "rbr_identity.weight" in name)
    assert identity in decayed_names


# -- Losses and batches ---------------------------------------------------------------------------


def test_auxiliary_losses_count_a_tenth() -> None:
    torch.manual_seed(0)
    logits = {name: torch.randn(4, 5) for name in ("main", "stage1_aux", "stage2_aux")}
    targets = torch.tensor([0, 1, 2, 3])
    loss = training_loss(logits, targets, label_smoothing=0.1)
    alone = {
        name: nn.functional.cross_entropy(one, targets, label_smoothing=0.1)
        for name, one in logits.items()
    }
    expected = alone["main"] + 0.1 * (alone["stage1_aux"] + alone["stage2_aux"])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        training_loss(logits["main"], targets, label_smoothing=0.1), alone["main"]
    )


def batches(rank: int, count: int, first: int = 0) -> list[list[tuple[int, int]]]:
    return list(
        TrainingBatches(
            50, 12, seed=3, first_step=first, last_step=8, processes=Processes(rank, count)
        )
    )


def test_processes_share_the_batches_of_one() -> None:
    alone = batches(0, 1)
    shares = [batches(rank, 3) for rank in range(3)]
    for step, batch in enumerate(alone):
        assert sorted(chain(*(share[step] for share in shares))) == sorted(batch)
    assert len({index for _, index in chain(*alone[:4])}) == 48
    assert alone[0] != alone[4]
    assert batches(0, 1, first=5) == alone[5:]


def test_a_network_depends_on_its_name_and_seed_alone() -> None:
    first, second = (build_network("small", num_classes=2, in_chans=1, seed=4) for _ in range(2))
    assert torch.equal(first.linear.weight, second.linear.weight)
    with pytest.raises(ReparamError, match="did you mean"):
        build_network("repvgg_a9", num_classes=2, in_chans=1)
