"""Stochastic gradient descent as RepVGG uses it, and the course of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD

from repvgg.training.recipes import Recipe


def make_optimizer(
    model: nn.Module, recipe: Recipe, *, decayed_elsewhere: Collection[nn.Parameter] = ()
) -> SGD:
    """Builds the optimizer.

    Weight decay spares all biases and the scales of the batch norms that follow a convolution. The
    batch norm of the identity branch is not spared: its scale is the weight of that branch.

    Args:
        model: The network.
        recipe: How it is trained.
        decayed_elsewhere: Parameters of which the loss has the decay already.
    """
    exempt = _scales_behind_convolutions(model) | {id(weight) for weight in decayed_elsewhere}
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_spared = name.rpartition(".")[2] == "bias" or id(parameter) in exempt
        (spared if is_spared else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed},
        {"params": spared, "weight_decay": 0.0},
    ]
    return SGD(
        groups,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )


def _scales_behind_convolutions(model: nn.Module) -> set[int]:
    """Identities of the scales of the batch norms that follow a convolution in a sequence."""
    sequences = [list(module) for module in model.modules() if isinstance(module, nn.Sequential)]
    return {
        id(layer.weight)
        for sequence in sequences
        if any(isinstance(layer, nn.Conv2d) for layer in sequence)
        for layer in sequence
        if isinstance(layer, _BatchNorm)
    }


def learning_rate(recipe: Recipe, step: int, steps_in_epoch: int) -> float:
    """Computes the learning rate of a step: a straight rise, then half a cosine down to 0.

    It is a function of the step, so that there is no state to be saved.

    Args:
        recipe: The recipe.
        step: The step, counted from 0.
        steps_in_epoch: How many steps make up an epoch.

    Examples:
        >>> recipe = Recipe(epochs=4, warmup_epochs=2)
        >>> [round(learning_rate(recipe, step, 1), 6) for step in range(4)]
        [0.05, 0.1, 0.1, 0.05]
    """
    warmup = recipe.warmup_epochs * steps_in_epoch
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    done = (step - warmup) / (recipe.epochs * steps_in_epoch - warmup)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
