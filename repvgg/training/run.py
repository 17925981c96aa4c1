"""Trains in a folder that keeps what is needed to go on, and the weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from reparam import ReparamError
from reparam.deployment import check_folder, remove_partial_files
from repvgg.data import Samples, check_same_classes, held_out_samples, seeded, training_samples
from repvgg.models import RepVGG
from repvgg.training.evaluation import Accuracy, evaluate
from repvgg.training.loop import TrainingState, train_steps
from repvgg.training.networks import build_network, network_of
from repvgg.training.optimization import learning_rate
from repvgg.training.processes import Processes
from repvgg.training.progress import progress_bar
from repvgg.training.recipes import Recipe
from repvgg.training.run_folder import RunFolder
from repvgg.training.run_log import Row, RunLog
from repvgg.weights import is_fused, save_checkpoint


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
    recipe = run.recipe
    train = training_samples(
        run.data, size=recipe.train_size, rand_augment=recipe.rand_augment, seed=run.seed
    )
    held_out = held_out_samples(run.data, recipe.test_size)
    check_same_classes(train, held_out)
    state = TrainingState(_network(run, train), recipe, processes)
    files = RunFolder(folder, _identity(run, train, processes))
    best = None if habits.restart else files.restore(state)
    if not processes.agree(state.step):
        raise ReparamError(
            f"the processes find different states in {folder}; "
            "it has to be on a file system that all machines share"
        )
    total = recipe.total_steps(len(train))
    if processes.first:
        _say(
            f"{run.model} on {len(train):,} images of {len(train.classes)} classes, "
            f"{len(held_out):,} held out\n{recipe}"
        )
        remove_partial_files(folder)  # of a run that was killed while it wrote
        if best is None:
            files.start(state, restart=habits.restart)
        elif state.step < total:
            _say(f"Going on after step {state.step:,} of {total:,} ({files.state})")
        else:
            _say(
                "This run is finished and nothing was changed. "
                "To train once more, choose another --output, or --restart"
            )
    if state.step < total:
        _train(files, run, habits, state, train, held_out, -1 if best is None else best)
    if processes.first:
        _say(f"The weights are in {files.best} and {files.final}")


def _say(text: str) -> None:
    print(text, flush=True)  # a long run is watched through pipes, which would hold lines back


def _network(run: Run, train: Samples) -> RepVGG:
    """The network to begin with; weights of another task get a fresh classifier."""
    classes = len(train.classes)
    if run.weights is None:
        return build_network(run.model, num_classes=classes, in_chans=train.channels, seed=run.seed)
    model = network_of(run.model, run.weights)
    if is_fused(model.state_dict()):
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
        "processes": processes.count,  # sums in another order round to other weights
        **asdict(run.recipe),
    }


def _train(
    files: RunFolder,
    run: Run,
    habits: Habits,
    state: TrainingState,
    train: Samples,
    held_out: Samples,
    best: int,
) -> None:
    steps, total = run.recipe.steps_in_epoch(len(train)), run.recipe.total_steps(len(train))
    # Added up where it was computed: to read a number at every step would wait for the GPU.
    sum_of_losses: Tensor | float = 0.0
    since = state.step
    with _log(files, state, habits) as log, progress_bar(show=state.processes.first) as bar:
        task = bar.add_task("training", total=total, completed=state.step, note="")
        for loss in train_steps(state, train, seed=run.seed, workers=habits.workers):
            sum_of_losses = sum_of_losses + loss
            bar.update(task, completed=state.step)
            epoch, within_epoch = divmod(state.step, steps)
            saving = within_epoch == 0 or state.step % habits.save_every == 0
            if not saving and state.step % habits.log_every:
                continue

            mean = _finite(float(sum_of_losses) / (state.step - since), state.step)
            sum_of_losses, since = 0.0, state.step
            bar.update(task, note=f"loss {mean:.3f}")
            # All processes evaluate together; what follows is for the first one, which writes.
            accuracy = None if within_epoch else _evaluate(state, held_out, habits.workers)
            if log is None:
                continue
            if accuracy is not None:
                bar.print(f"epoch {epoch}: loss {mean:.4f}, {accuracy}")
                if accuracy.top1 > best:
                    best = accuracy.top1
                    save_checkpoint(state.evaluated, files.best)
                if state.step == total:
                    save_checkpoint(state.evaluated, files.final)
            rate = learning_rate(run.recipe, state.step - 1, steps)
            log.add(_row(state.step, epoch, rate, mean, accuracy))
            if saving:
                files.save(state, best=best)


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise ReparamError(
            f"the loss became {loss} up to step {step:,}; "
            "try a smaller learning rate, or float32 if it was another precision"
        )
    return loss


def _evaluate(state: TrainingState, held_out: Samples, workers: int) -> Accuracy:
    processes = state.processes
    # Each process has moved the batch norms' statistics by its own share of the last batch.
    processes.send_from_first(state.evaluated)
    evaluation = evaluate(
        [state.evaluated],
        held_out,
        batch_size=max(1, state.recipe.batch_size // processes.count),
        processes=processes,
        workers=workers,
    )
    return evaluation.accuracies[0]


def _row(step: int, epoch: int, rate: float, loss: float, accuracy: Accuracy | None) -> Row:
    if accuracy is None:
        return Row(step, epoch, rate, loss)
    top1, top5 = accuracy.top1 / accuracy.images, accuracy.top5 / accuracy.images
    return Row(step, epoch, rate, loss, top1, top5)


@contextmanager
def _log(files: RunFolder, state: TrainingState, habits: Habits) -> Iterator[RunLog | None]:
    """The log in the first process, nothing in the others."""
    if not state.processes.first:
        yield None
        return
    with RunLog(files.log, step=state.step, tensorboard=habits.tensorboard) as log:
        yield log
