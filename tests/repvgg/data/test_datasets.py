"""Images from folders and digits, and what is wrong with them, said in one line."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from reparam import ReparamError
from repvgg.cli.accuracy import evaluate_weights
from repvgg.data.datasets import check_same_classes, held_out_samples, training_samples
from repvgg.data.digits import split_digits
from repvgg.data.samples import Samples
from repvgg.training.processes import Processes
from repvgg.training.recipes import Recipe
from repvgg.training.run import Habits, train_run
from repvgg.training.starts import Run

SMALL_IMAGES = Recipe(
    epochs=2, batch_size=4, learning_rate=0.01, train_size=32, test_size=32, rand_augment=9
)


def save_image(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (48, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Reddish and bluish images."""
    root = tmp_path / "images"
    for part, count in (("train", 6), ("val", 3)):
        for index in range(count):
            save_image(root / part / "red" / f"{index}.png", (200 + index, 30, 30))
            save_image(root / part / "blue" / f"{index}.jpg", (30, 30, 200 + index))
    return root


def samples(folder: Path, seed: int = 0) -> Samples:
    return training_samples(str(folder), size=32, rand_augment=9, seed=seed)


def train(folder: Path, output: Path, **values: Any) -> None:
    run = Run("small", str(folder), replace(SMALL_IMAGES, **values))
    train_run(output, run, Habits(log_every=1), Processes())


def test_a_network_learns_from_a_folder(folder: Path, tmp_path: Path) -> None:
    train(folder, tmp_path / "run", epochs=8, mixup=0.2, label_smoothing=0.1)
    evaluation = evaluate_weights(
        "small",
        tmp_path / "run" / "best.safetensors",
        str(folder),
        size=32,
        batch_size=4,
        workers=0,
        processes=Processes(),
    )
    assert evaluation.accuracies[0].top1 >= 5
    assert evaluation.agreements == (6, 6)


def test_a_run_on_a_folder_is_the_same_for_any_number_of_workers(
    folder: Path, tmp_path: Path
) -> None:
    weights = []
    for workers in (0, 2):
        output = tmp_path / f"run{workers}"
        run = Run("small", str(folder), replace(SMALL_IMAGES, mixup=0.2))
        train_run(output, run, Habits(workers=workers), Processes())
        weights.append((output / "final.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_the_augmentation_depends_on_the_seed_and_the_epoch(folder: Path) -> None:
    first, second = (samples(folder, seed=seed) for seed in (0, 1))
    image = first[0, 0][0]
    assert image.shape == (3, 32, 32)
    assert torch.equal(first[0, 0][0], image)
    assert not torch.equal(first[1, 0][0], image)
    assert not torch.equal(second[0, 0][0], image)


def test_held_out_images_are_the_middle_and_normalised(tmp_path: Path) -> None:
    save_image(tmp_path / "val" / "one" / "a.png", (124, 116, 104), size=(64, 128))
    image = held_out_samples(str(tmp_path), 56)[0, 0][0]
    assert image.shape == (3, 56, 56)
    assert image.abs().max() < 0.02  # the mean of ImageNet


def test_a_grey_image_gets_three_channels(tmp_path: Path) -> None:
    path = tmp_path / "val" / "one" / "a.png"
    path.parent.mkdir(parents=True)
    Image.new("L", (40, 40), 100).save(path)
    assert held_out_samples(str(tmp_path), 32)[0, 0][0].shape == (3, 32, 32)


def test_a_corrupt_image_is_named_and_what_was_saved_is_kept(folder: Path, tmp_path: Path) -> None:
    train(folder, tmp_path / "run")
    before = (tmp_path / "run" / "final.safetensors").read_bytes()
    broken = folder / "train" / "red" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    for workers in (0, 1):
        run = Run("small", str(folder), SMALL_IMAGES)
        with pytest.raises(ReparamError, match=rf"cannot read the image {broken}: .*replace"):
            train_run(tmp_path / f"new{workers}", run, Habits(workers=workers), Processes())
    assert (tmp_path / "run" / "final.safetensors").read_bytes() == before


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReparamError, match=rf"there is no folder {tmp_path}/none/train; images"):
        samples(tmp_path / "none")


@pytest.mark.parametrize("inside", [[], ["train/red"]], ids=["no class", "no image of a class"])
def test_an_empty_folder_is_named(tmp_path: Path, inside: list[str]) -> None:
    (tmp_path / "train").mkdir()
    for name in inside:
        (tmp_path / name).mkdir()
    with pytest.raises(ReparamError, match=rf"{tmp_path}/train is not a folder of images by class"):
        samples(tmp_path)


def test_other_classes_in_val_are_named(folder: Path) -> None:
    save_image(folder / "val" / "green" / "0.png", (0, 200, 0))
    train, held_out = (
        samples(folder),
        held_out_samples(str(folder), 32),
    )
    with pytest.raises(ReparamError, match="only on one side: val/green"):
        check_same_classes(train, held_out)


def test_a_missing_torchvision_is_an_error_that_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "repvgg.data.image_folder", None)
    with pytest.raises(
        ReparamError, match=r"image folders need torchvision, .* pip install torchvision"
    ):
        samples(folder)


def test_the_same_digits_are_held_out_whatever_the_seed() -> None:
    digits = split_digits(0)
    for seed in (0, 1):
        samples = training_samples("digits", size=32, rand_augment=9, seed=seed)
        assert len(samples) == len(digits.train_labels)
        assert [samples[0, index][1] for index in range(9)] == digits.train_labels[:9].tolist()
    held_out = held_out_samples("digits", 8)
    assert torch.equal(held_out[0, 5][0], digits.held_out_images[5])
