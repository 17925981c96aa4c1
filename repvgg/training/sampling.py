"""Which samples make up each step, for each process: a function of the seed and the step."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from reparam import ReparamError
from repvgg.data import Key, seed_of
from repvgg.training.processes import Processes
from repvgg.training.recipes import Recipe


class TrainingBatches(Sampler[list[Key]]):
    """Yields what one process trains on, step by step, in one sequence over all epochs.

    All processes together see the same samples in each step, however many they are.

    Args:
        samples: Number of samples to train on.
        recipe: Says how many of them are in one step, and how many steps there are.
        seed: Decides the order, which is another one in every epoch.
        first_step: Where to begin, counted from the start of the training.
        processes: The processes, of which the batches are cut for this one.

    Raises:
        ReparamError: If there are too few samples, or a batch cannot be shared out evenly.
    """

    def __init__(
        self,
        samples: int,
        recipe: Recipe,
        *,
        seed: int,
        first_step: int,
        processes: Processes,
    ) -> None:
        self.steps_in_epoch = recipe.steps_in_epoch(samples)
        self.batch_size = recipe.batch_size
        if self.batch_size % processes.count:
            raise ReparamError(
                f"a batch of {self.batch_size} images cannot be shared out evenly to "
                f"{processes.count} processes; choose a multiple of {processes.count}"
            )
        self.samples = samples
        self.seed = seed
        self.first_step = first_step
        self.last_step = recipe.total_steps(samples)
        self.processes = processes

    def __len__(self) -> int:
        return self.last_step - self.first_step

    def __iter__(self) -> Iterator[list[Key]]:
        share = self.batch_size // self.processes.count
        epoch, order = -1, torch.empty(0)
        for step in range(self.first_step, self.last_step):
            if step // self.steps_in_epoch != epoch:
                epoch = step // self.steps_in_epoch
                order = self._order(epoch)
            start = step % self.steps_in_epoch * self.batch_size + self.processes.rank * share
            yield [(epoch, index) for index in order[start : start + share].tolist()]

    def _order(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
        return torch.randperm(self.samples, generator=generator)


class HeldOutBatches(Sampler[list[Key]]):
    """Yields every held-out sample once, to one of the processes.

    Args:
        samples: Number of held-out samples.
        batch_size: Samples in one batch of one process.
        processes: The processes that share the samples.
    """

    def __init__(self, samples: int, batch_size: int, *, processes: Processes) -> None:
        self.indices = range(processes.rank, samples, processes.count)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self.indices), self.batch_size):
            # Nothing is drawn for held-out samples, so that any epoch will do.
            yield [(0, index) for index in self.indices[start : start + self.batch_size]]
