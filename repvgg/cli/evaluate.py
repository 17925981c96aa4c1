"""`python -m repvgg evaluate`."""

from __future__ import annotations

from pathlib import Path

import click

from reparam.deployment import cpu_threads
from repvgg.cli.accuracy import evaluate_weights
from repvgg.cli.options import (
    data_option,
    device_option,
    model_argument,
    threads_for,
    threads_option,
    weights_option,
    workers_option,
)
from repvgg.training import join, recipe_for


@click.command()
@model_argument
@weights_option("The weights to evaluate.", required=True)
@data_option
@click.option(
    "--size",
    type=click.IntRange(min=1),
    help="Height and width of images from a folder.  [default: the recipe's]",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=128, help="Images in one batch.")
@workers_option
@device_option
@threads_option
def evaluate(
    model: str,
    weights: Path,
    data: str,
    size: int | None,
    batch_size: int,
    workers: int,
    device: str,
    threads: int | None,
) -> None:
    """Measures the accuracy of MODEL on held-out images, as trained and fused.

    Both forms read the same images; the last line tells for how many of them they predict the
    same. MODEL is a name such as repvgg_a0, or small. Weights that are fused already are evaluated
    alone.
    """
    with cpu_threads(threads_for(data, threads)), join(device) as processes:
        evaluate_weights(
            model,
            weights,
            data,
            size=size or recipe_for(model).test_size,
            batch_size=batch_size,
            workers=workers,
            processes=processes,
        )
