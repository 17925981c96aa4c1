"""`python -m repvgg demo`."""

from __future__ import annotations

from pathlib import Path

import click

from reparam.deployment import cpu_threads
from repvgg.cli.options import seed_option


@click.command()
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
@seed_option("the held-out digits, the first weights and the order of training")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    help="Number of CPU threads; more bring little for so small a network.",
)
def demo(output: Path, epochs: int, seed: int, threads: int) -> None:
    """Trains, fuses and measures a small RepVGG in less than a minute.

    The network learns to read the handwritten digits of scikit-learn, all but a fifth, which is
    held out. Then reparam fuses it, and both forms are compared: their outputs in float64, their
    predictions for the held-out digits and their latencies.

    Nothing is downloaded. The folder gets trained.safetensors, fused.safetensors, demo.png and
    demo.svg; until everything has succeeded it is left as it was.
    """
    from repvgg.cli.demo_run import run_demo  # which needs matplotlib

    with cpu_threads(threads):
        run_demo(output, epochs=epochs, seed=seed)
