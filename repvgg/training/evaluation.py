"""Accuracy on held-out images, of one network or of both forms of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repvgg.data import Samples, load_batches
from repvgg.training.processes import Processes
from repvgg.training.sampling import HeldOutBatches


@dataclass(frozen=True)
class Accuracy:
    """How many of the images a network reads correctly, at once and within five guesses."""

    top1: int
    top5: int
    images: int

    def __str__(self) -> str:
        return (
            f"top-1 {self.top1 / self.images:.2%}, top-5 {self.top5 / self.images:.2%} "
            f"({self.top1:,} and {self.top5:,} of {self.images:,})"
        )


@dataclass(frozen=True)
class Evaluation:
    """What several networks read on the same images.

    Attributes:
        accuracies: The accuracy of each.
        agreements: For how many images each predicts what the first one predicts.
    """

    accuracies: tuple[Accuracy, ...]
    agreements: tuple[int, ...]


def evaluate(
    models: Sequence[nn.Module],
    samples: Samples,
    *,
    batch_size: int,
    processes: Processes,
    workers: int = 0,
) -> Evaluation:
    """Evaluates networks side by side; they are left in evaluation mode.

    Args:
        models: The networks, on the device of the processes, the same in all of them.
        samples: Held-out samples; every one counts once, however many processes share them.
        batch_size: Images of one batch of one process.
        processes: The processes that share the work.
        workers: Number of further processes that read samples ahead; 0 for none.

    Raises:
        ReparamError: If a sample cannot be read.
    """
    for model in models:
        model.eval()
    batches = HeldOutBatches(len(samples), batch_size, processes=processes)
    counts = torch.zeros(len(models), 3, dtype=torch.int64, device=processes.device)
    with torch.inference_mode():
        for images, labels in load_batches(samples, batches, workers=workers):
            images, labels = images.to(processes.device), labels.to(processes.device)
            guesses = [_guess(model(images)) for model in models]
            for place, guess in enumerate(guesses):
                hits = guess == labels[:, None]
                agreeing = guess[:, 0] == guesses[0][:, 0]
                counts[place] += torch.stack([hits[:, 0].sum(), hits.sum(), agreeing.sum()])
    totals: list[list[int]] = processes.sum(counts).tolist()
    return Evaluation(
        tuple(Accuracy(top1, top5, len(samples)) for top1, top5, _ in totals),
        tuple(agreeing for _, _, agreeing in totals),
    )


def _guess(logits: Tensor) -> Tensor:
    return logits.topk(min(5, logits.shape[1])).indices
