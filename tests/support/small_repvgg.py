"""Small networks of every kind: the package's, and the authors' of the same shape."""

import torch
from torch import nn

from repvgg import RepVGG, RepVGGConfig
from tests.support.images import random_images
from tests.support.official import Official
from tests.support.randomise import randomise_batch_norm

CLASSES = 7

CONFIGS = {
    "plain": RepVGGConfig((1, 2, 3, 1), (8, 16, 16, 32, 64)),
    "groups": RepVGGConfig((1, 2, 3, 1), (8, 16, 16, 32, 64), groups=4),
    "squeeze": RepVGGConfig((1, 2, 1, 1), (16, 16, 32, 32, 64), squeeze_excitation=True),
    "plus": RepVGGConfig((1, 2, 4, 1), (8, 16, 16, 32, 64), plus=True),
}

OFFICIAL = {
    "plain": Official([1, 2, 3, 1], [16, 16, 32, 64], 8, classes=CLASSES),
    "groups": Official([1, 2, 3, 1], [16, 16, 32, 64], 8, groups=4, classes=CLASSES),
    "squeeze": Official([1, 2, 1, 1], [16, 32, 32, 64], 16, squeeze=True, classes=CLASSES),
    "plus": Official([1, 2, 4, 1], [16, 16, 32, 64], 8, plus=True, classes=CLASSES),
}


def build(name: str, seed: int = 0) -> RepVGG:
    """One of the package's, in evaluation mode, with weights at which no mistake can hide."""
    torch.manual_seed(seed)
    model = RepVGG(CONFIGS[name], num_classes=CLASSES).eval()
    randomise(model, seed)
    return model


def build_official(name: str, seed: int = 0) -> nn.Module:
    """One of the authors' as trained, in evaluation mode, with such weights."""
    torch.manual_seed(seed)
    model = OFFICIAL[name].build(deploy=False).eval()
    randomise(model, seed)
    return model


def randomise(model: nn.Module, seed: int) -> None:
    """Randomises batch norms so that activations stay of one size."""
    randomise_batch_norm(model, seed, [random_images(4, 32, seed)])
