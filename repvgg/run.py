"""Trains in a folder that keeps what is needed to go on, and the weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress
from torch import Tensor

from reparam import ReparamError
from reparam.deployment.atomic_write import check_folder
from repvgg.datasets import check_same_classes, held_out_samples, training_samples
from repvgg.evaluation import Accuracy, evaluate
from repvgg.layouts import FUSED, find_layout
from repvgg.model import RepVGG
from repvgg.networks import build_network, network_of
from repvgg.optimization import learning_rate
from repvgg.processes import Processes
from repvgg.progress import progress_bar
from repvgg.randomness import seeded
from repvgg.recipes import Recipe
from repvgg.run_folder import RunFolder
from repvgg.run_log import Row, RunLog
from repvgg.samples import Samples
from repvgg.sampling import steps_in_epoch
from repvgg.training import TrainingState, train_steps


@dataclass(frozen=True)
class Run:
    """What is trained on what, and how: whatever decides the weights that come out.

    Attributes:
        model: Name of the network.
        data: `digits`, or a folder of images.
        recipe: How it is trained.
        seed: Decides the first weights, the order of samples and their augmentation.
        weights: A file with weights to start from, if not from fresh ones.
    """

    model: str
    data: str
    recipe: Recipe
    seed: int = 0
    weights: Path | None = None


@dataclass(frozen=True)
class Habits:
    """How a run is carried out; nothing here changes the weights that come out.

    Attributes:
        save_every: Steps from one saved state to the next; one is saved after each epoch, too.
        log_every: Steps from one row of the log to the next; each saved state has one, too.
        workers: Processes that read samples ahead, for each process that trains.
        tensorboard: Whether to log for TensorBoard as well.
        restart: Whether to discard what the folder holds of an earlier run.
    """

    save_every: int = 1000
    log_every: int = 50
    workers: int = 0
    tensorboard: bool = False
    restart: bool = False


def train_run(folder: Path, run: Run, habits: Habits, processes: Processes) -> None:
    """Trains, or goes on from the state that the folder holds of the same run.

    The folder gets `state.pt`, from which training goes on; `best.safetensors` and
    `final.safetensors`, the weights that were best on the held-out images and those of the last
    step; and `log.csv`. However often a run is interrupted, its weights are the same.

    Args:
        folder: Where everything is written; all processes have to see it.
        run: What to train.
        habits: How to carry it out.
        processes: The processes that train together.

    Raises:
        ReparamError: If the images or options are not what they should be, the folder holds
            another run, the loss is not a number or the disk is full. What was saved is kept.
    """
    check_folder(folder)
    train = training_samples(run.data, run.recipe, run.seed)
    held_out = held_out_samples(run.data, run.recipe.test_size)
    check_same_classes(train, held_out)
    model = _network(run, train)
    state = TrainingState(model, run.recipe, processes)
    files = RunFolder(folder, _identity(run, train, processes))
    best = None if habits.restart else files.restore(state)
    if not processes.agree(state.step):
        raise ReparamError(
            f"the processes find different states in {folder}; "
            "it has to be on a file system that all machines share"
        )
    total = run.recipe.epochs * steps_in_epoch(len(train), run.recipe.batch_size)
    if processes.first:
        click.echo(
            f"{run.model} on {len(train):,} images of {len(train.classes)} classes, "
            f"{len(held_out):,} held out\n{run.recipe}"
        )
        files.clean()
        if best is None:
            files.start(state, restart=habits.restart)
        elif state.step < total:
            click.echo(f"Going on after step {state.step:,} of {total:,} ({files.state})")
        else:
            click.echo(
                "This run is finished and nothing was changed. "
                "To train once more, choose another --output, or --restart"
            )
    if state.step < total:
        _train(files, run, habits, processes, train, held_out, state, -1 if best is None else best)
    if processes.first:
        click.echo(f"The weights are in {files.best} and {files.final}")


def _network(run: Run, train: Samples) -> RepVGG:
    """The network to begin with; weights of another task get a fresh classifier."""
    classes = len(train.classes)
    if run.weights is None:
        return build_network(run.model, num_classes=classes, in_chans=train.channels, seed=run.seed)
    model = network_of(run.model, run.weights)
    if find_layout(model.state_dict()) in FUSED:
        raise ReparamError(
            f"{run.weights} is fused, and training needs the branches; "
            "start from weights as trained"
        )
    if model.in_chans != train.channels:
        raise ReparamError(
            f"{run.weights} is for images of {model.in_chans} channels, "
            f"and {run.data} has images of {train.channels}"
        )
    if model.num_classes != classes:
        with seeded(run.seed, "classifier"):
            model.reset_classifier(classes)
    return model


def _identity(run: Run, train: Samples, processes: Processes) -> dict[str, Any]:
    weights = None
    if run.weights is not None:
        with run.weights.open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "model": run.model,
        "data": train.fingerprint,
        "seed": run.seed,
        "weights": weights,
        "processes": processes.count,
        **asdict(run.recipe),
    }


def _train(
    files: RunFolder,
    run: Run,
    habits: Habits,
    processes: Processes,
    train: Samples,
    held_out: Samples,
    state: TrainingState,
    best: int,
) -> None:
    recipe = run.recipe
    steps = steps_in_epoch(len(train), recipe.batch_size)
    total = recipe.epochs * steps
    losses = train_steps(
        state, train, recipe, seed=run.seed, processes=processes, workers=habits.workers
    )
    sum_of_losses: Tensor | float = 0.0
    since = state.step
    with _log(files, state.step, habits, processes) as log, _bar(processes) as bar:
        task = bar.add_task("training", total=total, completed=state.step, note="")
        for loss in losses:
            sum_of_losses = sum_of_losses + loss
            bar.update(task, completed=state.step)
            epoch, within_epoch = divmod(state.step, steps)
            saving = within_epoch == 0 or state.step % habits.save_every == 0
            if not saving and state.step % habits.log_every:
                continue

            mean = float(sum_of_losses) / (state.step - since)
            sum_of_losses, since = 0.0, state.step
            bar.update(task, note=f"loss {mean:.3f}")
            if not math.isfinite(mean):
                raise ReparamError(
                    f"the loss became {mean} up to step {state.step:,}; "
                    "try a smaller learning rate, or float32 if it was another precision"
                )
            accuracy = None
            if within_epoch == 0:
                accuracy = _evaluate(state, held_out, recipe, processes, habits.workers)
            if not processes.first:
                continue
            if accuracy is not None:
                bar.print(f"epoch {epoch}: loss {mean:.4f}, {accuracy}")
                if accuracy.top1 > best:
                    best = accuracy.top1
                    files.keep(files.best, state.evaluated)
                if state.step == total:
                    files.keep(files.final, state.evaluated)
            if log is not None:
                log.add(_row(state.step, epoch, recipe, steps, mean, accuracy))
            if saving:
                files.save(state, best=best)


def _bar(processes: Processes) -> Progress:
    return progress_bar(show=processes.first)


def _evaluate(
    state: TrainingState, held_out: Samples, recipe: Recipe, processes: Processes, workers: int
) -> Accuracy:
    # Each process has moved the batch norms' statistics by its own share of the last batch.
    processes.send_from_first(state.evaluated)
    evaluation = evaluate(
        [state.evaluated],
        held_out,
        batch_size=max(1, recipe.batch_size // processes.count),
        processes=processes,
        workers=workers,
    )
    return evaluation.accuracies[0]


def _row(
    step: int, epoch: int, recipe: Recipe, steps: int, loss: float, accuracy: Accuracy | None
) -> Row:
    rate = learning_rate(recipe, step - 1, steps)
    if accuracy is None:
        return Row(step, epoch, rate, loss)
    return Row(
        step,
        epoch,
        rate,
        loss,
        top1=accuracy.top1 / accuracy.images,
        top5=accuracy.top5 / accuracy.images,
    )


@contextmanager
def _log(
    files: RunFolder, step: int, habits: Habits, processes: Processes
) -> Iterator[RunLog | None]:
    """The log in the first process, nothing in the others."""
    if not processes.first:
        yield None
        return
    with RunLog(files.log, step=step, tensorboard=habits.tensorboard) as log:
        yield log
