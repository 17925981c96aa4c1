"""Images in folders as ImageNet has them: `train/CLASS/*.jpg` and `val/CLASS/*.jpg`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from reparam import ReparamError
from repvgg.data.samples import Samples

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_CROPPED = 0.875
"""The part of the shorter side that is evaluated, as is usual on ImageNet: 224 of 256 pixels."""


def training_images(root: Path, *, size: int, rand_augment: int, seed: int) -> Samples:
    """Reads `train/`; each image is cropped at random, flipped every other time, and normalised.

    Args:
        root: The folder that holds `train`.
        size: Height and width of the crops.
        rand_augment: Magnitude of RandAugment; 0 for none.
        seed: Decides the augmentation.

    Raises:
        ReparamError: If there are no images, or none of some class.
    """
    augment = [v2.RandAugment(magnitude=rand_augment)] if rand_augment else []
    crop = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), *augment]
    return _read(root / "train", crop, seed)


def held_out_images(root: Path, *, size: int) -> Samples:
    """Reads `val/`; the middle of each image is cut out and normalised.

    Args:
        root: The folder that holds `val`.
        size: Height and width of the crops.

    Raises:
        ReparamError: If there are no images, or none of some class.
    """
    return _read(root / "val", [v2.Resize(round(size / _CROPPED)), v2.CenterCrop(size)], seed=0)


def _read(folder: Path, crop: list[Any], seed: int) -> Samples:
    if not folder.is_dir():
        raise ReparamError(
            f"there is no folder {folder}; images are expected in "
            f"{folder.parent}/train/CLASS/ and {folder.parent}/val/CLASS/"
        )
    try:
        images = ImageFolder(folder, loader=_open)
    except FileNotFoundError as error:
        raise ReparamError(
            f"{folder} is not a folder of images by class: {error}; "
            f"images are expected in {folder}/CLASS/"
        ) from error
    normalise = [
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(_MEAN, _STD),
    ]
    return Samples(
        images,
        v2.Compose([*crop, *normalise]),
        classes=images.classes,
        channels=3,
        names=(str(Path(path).relative_to(folder)) for path, _ in images.samples),
        seed=seed,
    )


def _open(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
        raise ReparamError(
            f"cannot read the image {path}: {error}; replace or remove it"
        ) from error
