"""The demo's task: handwritten digits, a small RepVGG for them, and its training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

from repvgg.model import RepVGG, RepVGGConfig

SMALL_REPVGG = RepVGGConfig(
    blocks=(2, 2, 2, 1), channels=(16, 16, 32, 64, 128), strides=(1, 1, 2, 2, 1)
)
"""Eight blocks, for images of 8 by 8 pixels."""

_BATCH = 64
_LEARNING_RATE = 0.2


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
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    train, held_out = train_test_split(
        range(len(labels)), test_size=0.2, random_state=seed, stratify=digits.target
    )
    return Digits(images[train], labels[train], images[held_out], labels[held_out])


def small_repvgg(seed: int) -> RepVGG:
    """Builds the demo's network; the same weights for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RepVGG(SMALL_REPVGG, num_classes=10, in_chans=1)


def train(model: nn.Module, digits: Digits, *, epochs: int, seed: int) -> None:
    """Trains in place and leaves the model in evaluation mode; shows progress in a terminal."""
    generator = torch.Generator().manual_seed(seed)
    batches = len(digits.train_labels) // _BATCH
    optimizer = torch.optim.SGD(
        model.parameters(), lr=_LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _LEARNING_RATE, total_steps=epochs * batches
    )
    model.train()
    with _progress_bar() as progress:
        task = progress.add_task("training", total=epochs * batches, loss="")
        for _ in range(epochs):
            order = torch.randperm(len(digits.train_labels), generator=generator)
            for chosen in order[: batches * _BATCH].view(batches, _BATCH):
                logits = model(_shift(digits.train_images[chosen], generator))
                loss = functional.cross_entropy(
                    logits, digits.train_labels[chosen], label_smoothing=0.1
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update(task, advance=1, loss=f"loss {loss.item():.3f}")
    model.eval()


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Predicts the digit on each image.

    Shape:
        - images: :math:`(N, 1, 8, 8)`
        - Output: :math:`(N)`
    """
    with torch.inference_mode():
        logits: Tensor = model(images)
    return logits.argmax(dim=1)


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Moves each image by up to one pixel along both axes."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (1, 1, 1, 1))
    top, left = torch.randint(0, 3, (2, count, 1), generator=generator)
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    image = torch.arange(count)[:, None, None]
    return padded[image, 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def _progress_bar() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[loss]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
