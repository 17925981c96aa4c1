"""The images that are named on the command line: `digits`, or a folder."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from reparam import ReparamError
from repvgg.data.digits import held_out_digits, split_digits, training_digits
from repvgg.data.optional import import_torchvision
from repvgg.data.samples import Samples

_DIGITS = "digits"

_SPLIT = 0
"""The same digits are held out whatever the seed, so that evaluation never sees trained ones."""


def training_samples(data: str, *, size: int, rand_augment: int, seed: int) -> Samples:
    """Opens the samples to train on.

    Args:
        data: `digits`, or a folder with `train/CLASS/*.jpg`.
        size: Height and width of images from a folder.
        rand_augment: Magnitude of RandAugment on images from a folder; 0 for none.
        seed: Decides the augmentation.

    Raises:
        ReparamError: If the images are not there, or torchvision is needed and missing.
    """
    if data == _DIGITS:
        return training_digits(split_digits(_SPLIT), seed)
    samples: Samples = _image_folder().training_images(
        Path(data), size=size, rand_augment=rand_augment, seed=seed
    )
    return samples


def held_out_samples(data: str, size: int) -> Samples:
    """Opens the samples to evaluate on.

    Args:
        data: `digits`, or a folder with `val/CLASS/*.jpg`.
        size: Height and width of images from a folder.

    Raises:
        ReparamError: If the images are not there, or torchvision is needed and missing.
    """
    if data == _DIGITS:
        return held_out_digits(split_digits(_SPLIT))
    samples: Samples = _image_folder().held_out_images(Path(data), size=size)
    return samples


def check_same_classes(train: Samples, held_out: Samples) -> None:
    """Refuses held-out images of other classes than those that are learnt.

    Raises:
        ReparamError: Naming the classes that only one side has.
    """
    only_train = sorted(set(train.classes) - set(held_out.classes))
    only_held_out = sorted(set(held_out.classes) - set(train.classes))
    if only_train or only_held_out:
        differences = [
            f"{folder}/{name}"
            for folder, names in (("train", only_train), ("val", only_held_out))
            for name in names[:5]
        ]
        raise ReparamError(
            "the folders train and val have to hold the same classes; only on one side: "
            + ", ".join(differences)
        )


def _image_folder() -> ModuleType:
    return import_torchvision("repvgg.data.image_folder", purpose="image folders need")
