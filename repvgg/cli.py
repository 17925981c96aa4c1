"""The command line: `python -m repvgg demo`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import torch

from reparam import ReparamError

_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def _commands() -> None:
    """RepVGG networks: train them with branches, fuse them with reparam."""


@_commands.command(name="demo")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("repvgg-demo"),
    help="Folder for the weights and the picture; made if it is missing.",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    default=30,
    help="How often training passes over the digits; fewer is faster and less accurate.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**32 - 1),
    default=0,
    help="Fixes the held-out digits, the first weights and the order of training.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    help="Number of CPU threads; more bring little for so small a network.",
)
def _demo(output: Path, epochs: int, seed: int, threads: int) -> None:
    """Trains, fuses and measures a small RepVGG in less than a minute.

    The network learns to read the handwritten digits of scikit-learn, all but a fifth, which is
    held out. Then reparam fuses it, and both forms are compared: their outputs in float64, their
    predictions for the held-out digits and their latencies.

    Nothing is downloaded. The folder gets trained.safetensors, fused.safetensors, demo.png and
    demo.svg; until everything has succeeded it is left as it was.
    """
    from repvgg.demo import run_demo

    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        run_demo(output, epochs=epochs, seed=seed)
    finally:
        torch.set_num_threads(threads_before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: The words after the program's name; those of the process if `None`.

    Returns:
        The exit code: 0, 1 for a failure, 2 for wrong usage, 130 after Ctrl-C.
    """
    try:
        code = _commands.main(arguments, prog_name="python -m repvgg", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return _INTERRUPTED
    except ReparamError as error:
        click.echo(f"Error: {error}", err=True)
        return 1
    return code if isinstance(code, int) else 0
