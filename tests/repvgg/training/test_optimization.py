"""The course of the learning rate, and what decays."""

from __future__ import annotations

import pytest
import torch

import repvgg
from repvgg.training.optimization import learning_rate, make_optimizer
from repvgg.training.recipes import Recipe


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
