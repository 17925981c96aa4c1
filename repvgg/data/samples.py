"""What is trained and evaluated on: images with labels, changed by a transform."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from reparam import ReparamError
from repvgg.data.randomness import seeded

Batch = tuple[Tensor, Tensor]

Key = tuple[int, int]
"""Epoch and index of a sample: together with the seed they decide its augmentation."""


class Samples(Dataset[Any]):
    """Images with labels; the transform of each draws from a generator of its own.

    Args:
        source: The images and labels, by their index; reading a broken one raises `ReparamError`.
        transform: Turns an image into a tensor.
        classes: Names of the classes, by label.
        channels: Channels of the tensors.
        names: What tells these samples from others, one name for each.
        seed: Decides what the transforms draw.
    """

    def __init__(
        self,
        source: Sequence[tuple[Any, Any]] | Dataset[tuple[Any, ...]],
        transform: Callable[[Any], Tensor],
        *,
        classes: Sequence[str],
        channels: int,
        names: Iterable[str],
        seed: int = 0,
    ) -> None:
        self.source = source
        self.transform = transform
        self.classes = tuple(classes)
        self.channels = channels
        self.fingerprint = hashlib.sha256("\n".join(names).encode()).hexdigest()
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)  # type: ignore[arg-type]

    def __getitem__(self, key: Key) -> tuple[Tensor, Any] | ReparamError:
        """Reads a sample; what makes it unreadable is a value, to come through worker processes."""
        epoch, index = key
        try:
            image, label = self.source[index]
        except ReparamError as error:
            return error
        with seeded(self.seed, "sample", epoch, index):
            return self.transform(image), label


def load_batches(
    samples: Samples, batches: Sampler[list[Key]], *, workers: int, pin_memory: bool = False
) -> Iterable[Batch]:
    """Yields batches of samples, read ahead by worker processes if there are any.

    Raises:
        ReparamError: If a sample cannot be read.
    """
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else the loader would draw from everybody's generator
    )
    for batch in loader:
        if isinstance(batch, ReparamError):
            raise batch
        images, labels = batch
        yield images, labels


def _collate(items: list[tuple[Tensor, Any] | ReparamError]) -> Any:
    for item in items:
        if isinstance(item, ReparamError):
            return item
    return default_collate(items)
