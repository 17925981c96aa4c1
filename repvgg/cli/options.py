"""What several commands have in common."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="Where to compute; auto takes a GPU if there is one.",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1, max=os.cpu_count()),
    help="Number of CPU threads.  [default: 1 on the digits, else as PyTorch chooses]",
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    help="Processes that read images ahead, for each process that computes.",
)
data_option = click.option(
    "--data",
    default="digits",
    metavar="digits|FOLDER",
    help="What to work on: scikit-learn's digits, or a folder as ImageNet has it, with images in "
    "FOLDER/train/CLASS and FOLDER/val/CLASS.",
)
model_argument = click.argument("model", metavar="MODEL")


def seed_option(text: str) -> Callable[[CommandT], CommandT]:
    """Makes the option for the number that fixes what is random."""
    return click.option(
        "--seed", type=click.IntRange(min=0, max=2**32 - 1), default=0, help=f"Fixes {text}."
    )


def weights_option(text: str, *, required: bool) -> Callable[[CommandT], CommandT]:
    """Makes the option for a file of weights, which is looked at before anything is done."""
    return click.option(
        "--weights",
        type=click.Path(path_type=Path),
        required=required,
        metavar="FILE",
        help=f"{text} A .safetensors file, or a .pth of the authors, of timm or under "
        "DistributedDataParallel.",
    )


def threads_for(data: str, number: int | None) -> int | None:
    """Chooses one thread for the digits, whose networks are too small for more."""
    return 1 if number is None and data == "digits" else number
