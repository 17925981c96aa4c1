"""Trains in a folder that keeps what is needed to go on, and the weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from reparam import ReparamError
from reparam.deployment import check_folder, remove_partial_files
from repvgg.data import Samples, check_same_classes, held_out_samples, training_samples
from repvgg.training.evaluation import Accuracy
from repvgg.training.keeping import Row, RunFolder, RunLog
from repvgg.training.loop import TrainingState, train_steps
from repvgg.training.optimization import learning_rate
from repvgg.training.processes import Processes
from repvgg.training.progress import progress_bar
from repvgg.training.starts import Run, first_network, saved_layout
from repvgg.training.validation import Validation
from repvgg.weights import Layout, save_checkpoint


@dataclass(frozen=True)
class Habits:
    """How a run is carried out; nothing here changes the weights that come out.

    Attributes:
        save_every: Steps from one saved state to the next; one is saved after each epoch, too.
        log_every: Steps from one row of the log to the next; each saved state has one, too.
        workers: Processes that read samples ahead, for each process that trains.
        tensorboard: Whether to log for TensorBoard as well.
        restart: Whether to discard what the folder holds of an earlier run.
        validate_fused: Whether the fused form is evaluated after each epoch, too.
    """

    save_every: int = 1000
    log_every: int = 50
    workers: int = 0
    tensorboard: bool = False
    restart: bool = False
    validate_fused: bool = True


def train_run(folder: Path, run: Run, habits: Habits, processes: Processes) -> None:
    """Trains, or goes on from the state that the folder holds of the same run.

    The folder gets `state.pt`, from which training goes on; `best.safetensors` and
    `final.safetensors`, the weights that were best on the held-out images and those of the last
    step; and `log.csv`. However often a run is interrupted, its weights are the same. A run that
    expands fused weights writes fused ones, under the same names.

    Args:
        folder: Where everything is written; all processes have to see it.
        run: What to train.
        habits: How to carry it out.
        processes: The processes that train together.

    Raises:
        ReparamError: If the images or options are not what they should be, the folder holds
            another run, the loss is not a number, the fused form differs by more than rounding or
            the disk is full. What was saved is kept.
    """
    check_folder(folder)
    recipe = run.recipe
    train = training_samples(
        run.data, size=recipe.train_size, rand_augment=recipe.rand_augment, seed=run.seed
    )
    held_out = held_out_samples(run.data, recipe.test_size)
    check_same_classes(train, held_out)
    state = TrainingState(first_network(run, train), recipe, processes)
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
        "expand": run.expand,
        "expand_norms": run.expand_norms and run.expand is not None,
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
    layout = saved_layout(run)
    validation = Validation(state, held_out, fused=habits.validate_fused, workers=habits.workers)
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
            accuracies = () if within_epoch else validation.evaluate()
            if log is None:
                continue
            if accuracies:
                bar.print(f"epoch {epoch}: loss {mean:.4f}, {_described(accuracies)}")
                if accuracies[0].top1 > best:
                    best = accuracies[0].top1
                    _save_weights(validation, files.best, layout)
                if state.step == total:
                    _save_weights(validation, files.final, layout)
            rate = learning_rate(run.recipe, state.step - 1, steps)
            log.add(_row(state.step, epoch, rate, mean, accuracies))
            if saving:
                files.save(state, best=best)


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise ReparamError(
            f"the loss became {loss} up to step {step:,}; "
            "try a smaller learning rate, or float32 if it was another precision"
        )
    return loss


def _save_weights(validation: Validation, path: Path, layout: Layout | None) -> None:
    """Saves the weights as trained, or those of the fused form in a layout of it."""
    network = validation.state.evaluated if layout is None else validation.fused()
    save_checkpoint(network, path, layout=layout)


def _described(accuracies: Sequence[Accuracy]) -> str:
    return "\n  fused: ".join(map(str, accuracies))


def _row(step: int, epoch: int, rate: float, loss: float, accuracies: Sequence[Accuracy]) -> Row:
    shares = [
        hits / accuracy.images for accuracy in accuracies for hits in (accuracy.top1, accuracy.top5)
    ]
    return Row(step, epoch, rate, loss, *shares)


@contextmanager
def _log(files: RunFolder, state: TrainingState, habits: Habits) -> Iterator[RunLog | None]:
    """The log in the first process, nothing in the others."""
    if not state.processes.first:
        yield None
        return
    with RunLog(files.log, step=state.step, tensorboard=habits.tensorboard) as log:
        yield log
