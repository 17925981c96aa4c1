"""A whole network of a model library, with random weights and inputs that fit."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.images import random_images
from tests.support.randomise import randomise_batch_norm

Inputs = Callable[[int, int], tuple[Any, ...]]
"""Makes the inputs of a forward from the size of the batch and a seed."""


STAYING = {
    "PatchTSMixer": 2,
    "ResNet-18, DoRA": 3,
    "VitMatte": 1,
}
"""Batch norms of a network that stay although a neighbour could absorb them: not reached yet."""


class Network:
    """What the tests of all libraries need to know of one network."""

    library: str
    name: str
    selected: bool = False
    """Whether continuous integration takes it."""
    calibrating: int = 8
    """How many inputs its batch norms are normalised to."""

    def __str__(self) -> str:
        return self.name

    @property
    def mark(self) -> str:
        """The mark of the tests that take it; empty where all runs do."""
        return "corpus" if self.selected else "heavy"

    within_reach = True
    """Whether there can be as few operators as in the library's own fused form."""

    def construct(self) -> nn.Module:
        """The network as its library makes it."""
        raise NotImplementedError

    def inputs(self, count: int, seed: int) -> tuple[Any, ...]:
        """The positional arguments of one forward."""
        raise NotImplementedError

    def by_hand(self, model: nn.Module) -> nn.Module | None:
        """A copy fused by the library itself, where it can do that."""
        return None

    def build(self, seed: int) -> nn.Module:
        """The network in evaluation mode, with randomised statistics and scales."""
        torch.manual_seed(seed)
        model = self.construct().eval()
        return randomise_batch_norm(model, seed, self.inputs(self.calibrating, seed))


def images(size: int, channels: int = 3) -> Inputs:
    """Square images."""
    return lambda count, seed: (random_images(count, size, seed, channels),)


def pairs(size: int) -> Inputs:
    """Two grey images each, repeated over the channels."""

    def make(count: int, seed: int) -> tuple[Tensor]:
        grey = random_images(2 * count, size, seed, 1)
        return (grey.unflatten(0, (count, 2)).repeat(1, 1, 3, 1, 1),)

    return make


def audio(samples: int) -> Inputs:
    """Waves of one channel, whose axis is left out."""

    def make(count: int, seed: int) -> tuple[Tensor]:
        return (torch.randn(count, samples, generator=torch.Generator().manual_seed(seed)),)

    return make


def spectrogram(bins: int, frames: int) -> Inputs:
    """As `audio`, by frequency and time."""

    def make(count: int, seed: int) -> tuple[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(count, bins, frames, generator=generator),)

    return make


def tokens(length: int = 12, vocabulary: int = 100) -> Inputs:
    """Sequences of words."""

    def make(count: int, seed: int) -> tuple[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return (torch.randint(3, vocabulary, (count, length), generator=generator),)

    return make


def series(steps: int, channels: int) -> Inputs:
    """Values over time, channels last."""

    def make(count: int, seed: int) -> tuple[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(count, steps, channels, generator=generator),)

    return make


def translation() -> Inputs:
    """Two sequences of words, and no mask between them."""

    def make(count: int, seed: int) -> tuple[Any, ...]:
        return (*tokens()(count, seed), None, *tokens(7)(count, seed + 1))

    return make


def transcription() -> Inputs:
    """A spectrogram and words, and no mask between them."""

    def make(count: int, seed: int) -> tuple[Any, ...]:
        return (*spectrogram(20, 60)(count, seed), None, *tokens()(count, seed))

    return make
