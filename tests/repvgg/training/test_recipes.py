"""The recipes, and values that none can have."""

from __future__ import annotations

from typing import Any

import pytest

from reparam import ReparamError
from repvgg.training.recipes import DIGITS, PLUS, Recipe, recipe_for


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
