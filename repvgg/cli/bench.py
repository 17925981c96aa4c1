"""`python -m repvgg bench`."""

from __future__ import annotations

import click

from reparam.deployment import cpu_threads
from repvgg.cli.latencies import run_benchmark
from repvgg.cli.options import model_argument


@click.command()
@model_argument
@click.option(
    "--batch-size",
    "batch_sizes",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1, 8),
    help="Images at a time; may be given several times.",
)
@click.option(
    "--size",
    type=click.IntRange(min=1),
    help="Height and width of the images.  [default: 8 for small, else 224]",
)
@click.option("--rounds", type=click.IntRange(min=2), default=50, help="How often each form runs.")
@click.option("--channels-last", is_flag=True, help="Lay channels next to each other in memory.")
@click.option("--threads", type=click.IntRange(min=1), default=1, help="Number of CPU threads.")
def bench(
    model: str,
    batch_sizes: tuple[int, ...],
    size: int | None,
    rounds: int,
    channels_last: bool,
    threads: int,
) -> None:
    """Measures the latency of MODEL on the CPU, as trained and fused.

    Both forms take turns in one process; how many times faster the fused one is comes first, then
    the medians with their quartiles. MODEL is a name such as repvgg_a0, or small; its weights are
    fresh ones.
    """
    with cpu_threads(threads):
        run_benchmark(model, batch_sizes, size=size, rounds=rounds, channels_last=channels_last)
