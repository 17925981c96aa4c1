"""`python -m repvgg train`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from reparam.deployment import cpu_threads
from repvgg.cli.options import (
    data_option,
    device_option,
    seed_option,
    threads_for,
    threads_option,
    weights_option,
    workers_option,
)
from repvgg.training import (
    BLOCKS,
    PRECISIONS,
    SMALL,
    Habits,
    Recipe,
    Run,
    join,
    recipe_for,
    train_run,
)


def _recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds one option for each value of a recipe."""
    for field in reversed(fields(Recipe)):
        name = field.name.replace("_", "-")
        flag = isinstance(field.default, bool)
        kind = click.Choice(PRECISIONS) if field.name == "precision" else type(field.default)
        command = click.option(
            f"--{name}/--no-{name}" if flag else f"--{name}",
            field.name,
            type=None if flag else kind,
            default=None,
            help=f"{field.metadata['help']}  [default: the recipe's]",
        )(command)
    return command


@click.command()
@data_option
@click.option(
    "--model",
    help="Name of the network, small among them.  [default: small for digits, else repvgg_a0]",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("repvgg-run"),
    help="Folder for the weights, the log and the state to go on from; made if it is missing.",
)
@weights_option(
    "Weights to start from, of this network, with whatever number of classes.", required=False
)
@click.option(
    "--expand",
    is_flag=False,
    flag_value="rep_vgg",
    type=click.Choice(BLOCKS),
    help="Start from fused weights and give the convolution of each block new branches: those of "
    "this block of reparam.blocks, or of rep_vgg without a name. The weights that come out are "
    "fused again, under the names of the file.",
)
@click.option(
    "--expand-norms/--no-expand-norms",
    default=True,
    help="Whether a batch norm ends each new branch. Without any, the network computes in training "
    "mode, too, what the fused weights do, and needs a smaller learning rate.",
)
@seed_option("the first weights, the order of the images and their augmentation")
@click.option("--restart", is_flag=True, help="Discard what the folder holds of an earlier run.")
@click.option(
    "--save-every",
    type=click.IntRange(min=1),
    default=1000,
    help="Steps from one saved state to the next; one is saved after each epoch, too.",
)
@click.option(
    "--log-every",
    type=click.IntRange(min=1),
    default=50,
    help="Steps from one row of the log to the next.",
)
@click.option(
    "--validate-fused/--no-validate-fused",
    default=True,
    help="Whether the fused form, brought up to date, is evaluated after each epoch as well.",
)
@click.option("--tensorboard", is_flag=True, help="Log for TensorBoard as well.")
@workers_option
@device_option
@threads_option
@_recipe_options
def train(
    data: str,
    model: str | None,
    output: Path,
    weights: Path | None,
    expand: str | None,
    expand_norms: bool,
    seed: int,
    restart: bool,
    save_every: int,
    log_every: int,
    validate_fused: bool,
    tensorboard: bool,
    workers: int,
    device: str,
    threads: int | None,
    **values: Any,
) -> None:
    """Trains a network, and goes on where an interrupted run stopped.

    Without further options the recipe of the paper is used, or a short one on the digits. Run the
    same command again after an interruption, at whatever moment: the weights will be those of a
    run without one, bit for bit. The folder gets best.safetensors and final.safetensors, the
    weights as trained, or fused again with --expand; log.csv, with the accuracies of the branches
    and of the fused form after each epoch; and state.pt, from which training goes on.

    On several GPUs or machines, start it by torchrun --nproc-per-node=N -m repvgg train …
    """
    name = model or (SMALL if data == "digits" else "repvgg_a0")
    chosen = {key: value for key, value in values.items() if value is not None}
    recipe = recipe_for(name, digits=data == "digits").changed(**chosen)
    run = Run(name, data, recipe, seed, weights, expand, expand_norms)
    habits = Habits(save_every, log_every, workers, tensorboard, restart, validate_fused)
    with cpu_threads(threads_for(data, threads)), join(device) as processes:
        train_run(output, run, habits, processes)
