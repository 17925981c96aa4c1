"""Handwritten digits: 1,797 images of 8 by 8 pixels that come with scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from repvgg.data.samples import Samples

_CLASSES = [str(digit) for digit in range(10)]


@dataclass(frozen=True)
class Digits:
    """Images of handwritten digits, split into those to train on and those held out.

    Shape:
        - images: :math:`(N, 1, 8, 8)`, between 0 and 1
        - labels: :math:`(N)`
    """

    train_images: Tensor
    train_labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor


def split_digits(seed: int) -> Digits:
    """Loads scikit-learn's 1,797 digits and holds out a fifth, every digit equally often."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    train, held_out = train_test_split(
        range(len(labels)), test_size=0.2, random_state=seed, stratify=digits.target
    )
    return Digits(images[train], labels[train], images[held_out], labels[held_out])


def training_digits(digits: Digits, seed: int) -> Samples:
    """The digits to train on, each moved by up to one pixel along both axes.

    Args:
        digits: The split.
        seed: Decides how they are moved.
    """
    return _samples(digits.train_images, digits.train_labels, _shift, seed)


def held_out_digits(digits: Digits) -> Samples:
    """The digits to evaluate on, as they are."""
    return _samples(digits.held_out_images, digits.held_out_labels, nn.Identity(), seed=0)


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Predicts the digit on each image.

    Shape:
        - images: :math:`(N, 1, 8, 8)`
        - Output: :math:`(N)`
    """
    with torch.inference_mode():
        logits: Tensor = model(images)
    return logits.argmax(dim=1)


def _samples(
    images: Tensor, labels: Tensor, transform: Callable[[Tensor], Tensor], seed: int
) -> Samples:
    return Samples(
        TensorDataset(images, labels),
        transform,
        classes=_CLASSES,
        channels=1,
        names=(str(label) for label in labels.tolist()),
        seed=seed,
    )


def _shift(image: Tensor) -> Tensor:
    """Moves an image by up to one pixel along both axes."""
    _, height, width = image.shape
    top, left = torch.randint(0, 3, (2,)).tolist()
    return functional.pad(image, (1, 1, 1, 1))[:, top : top + height, left : left + width]
