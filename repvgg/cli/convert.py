"""`python -m repvgg convert`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from repvgg.cli.options import model_argument, weights_option
from repvgg.cli.weight_conversion import convert_weights
from repvgg.weights import Layout


@click.command()
@model_argument
@weights_option("The weights to convert.", required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="Where to write: .safetensors or .pth for weights, .onnx, or .pt2 for an exported "
    "program of PyTorch.",
)
@click.option(
    "--form",
    type=click.Choice(["fused", "trained"]),
    default="fused",
    help="Whether to fuse before.",
)
@click.option(
    "--layout",
    type=click.Choice(get_args(Layout)),
    help="Names of the weights in a file of weights.  [default: the authors' for the form]",
)
@click.option(
    "--size",
    type=click.IntRange(min=1),
    help="Height and width of the images for .onnx and .pt2.  [default: 8 for small, else 224]",
)
def convert(
    model: str, weights: Path, output: Path, form: str, layout: Layout | None, size: int | None
) -> None:
    """Turns the weights of MODEL into fused ones, or into a program that runs without this package.

    The format follows from the name of the output. Programs take batches of any size; they are run
    once, and written only if they return what the network returns. MODEL is a name such as
    repvgg_a0, or small.
    """
    convert_weights(model, weights, output, fused=form == "fused", layout=layout, size=size)
