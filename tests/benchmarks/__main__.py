"""Runs the benchmarks and renders their page: `python -m tests.benchmarks`."""

import time

import click
import torch

from tests.benchmarks import busy, fusing, inference, page, planning
from tests.benchmarks.engines import ENGINES
from tests.benchmarks.measuring import processor_and_threads
from tests.benchmarks.networks import networks
from tests.benchmarks.results import Kept
from tests.support.correctness_page import run_versions

PARTS = ("fusing", "busy", "planning", "inference")


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice([*PARTS, "page"]))
@click.option("--network", "names", multiple=True, help="Only these networks, for inference.")
@click.option(
    "--engine", "engines", multiple=True, type=click.Choice(list(ENGINES)), help="Only these."
)
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 8), show_default=True)
@click.option("--rounds", default=41, show_default=True, help="How often each form runs.")
@click.option("--seconds", default=12.0, show_default=True, help="At most, for one comparison.")
@click.option("--threads", default=1, show_default=True)
@click.option("--again", is_flag=True, help="Measure inference anew where it was measured.")
def main(
    parts: tuple[str, ...],
    names: tuple[str, ...],
    engines: tuple[str, ...],
    batches: tuple[int, ...],
    rounds: int,
    seconds: float,
    threads: int,
    again: bool,
) -> None:
    """Measures PARTS (all by default) and renders docs/benchmarks.md and the table of the README.

    Inference that was measured before is kept, so that a run can be interrupted.
    """
    torch.set_num_threads(threads)
    start = time.perf_counter()
    for part in parts or PARTS:
        if part == "page":
            continue
        head = {"hardware": processor_and_threads(), **run_versions(0)}
        kept = Kept(page.DATA[part], head)
        if part == "fusing":
            fusing.measure_all(kept, rounds=min(rounds, 7))
        elif part == "busy":
            busy.measure_all(kept)
        elif part == "planning":
            planning.measure_all(kept, rounds=rounds)
        else:
            for network in networks():
                if names and network.name not in names:
                    continue
                left = [
                    engine
                    for engine in engines or ENGINES
                    if again or not kept.has(network=network.name, engine=engine)
                ]
                inference.measure(network, batches, left, rounds, seconds, kept.add)
                print(f"{time.perf_counter() - start:6.0f} s  {network.name}: {', '.join(left)}")
        kept.write()
    page.write()


if __name__ == "__main__":
    main()
