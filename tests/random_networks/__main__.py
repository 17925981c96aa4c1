"""Tries any number of random networks: `python -m tests.random_networks --networks 10000`."""

import time

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.random_networks import campaign, expanded
from tests.random_networks.checking import smallest_failing
from tests.support.correctness_page import (
    EXPANDED_NETWORKS,
    RANDOM_NETWORKS,
    expanded_networks_text,
    keep_run,
    random_networks_text,
)


@click.command()
@click.option("--networks", default=1000, show_default=True, help="How many networks to try.")
@click.option("--first-seed", default=0, show_default=True, help="The seed of the first one.")
@click.option("--jobs", default=2, show_default=True, help="Over how many processes.")
@click.option("--shrink", default=0, show_default=True, help="How many failing networks to show.")
@click.option("--expanded", "expand", is_flag=True, help="Expand them, move them, and fuse then.")
@click.option("--keep", is_flag=True, help="Keep the result in docs/, beside those of other seeds.")
def main(networks: int, first_seed: int, jobs: int, shrink: int, expand: bool, keep: bool) -> None:
    """Fuse random networks and assert that each is exact, never dearer and explained.

    The exit status is 1 if one fails.
    """
    console = Console()
    room = expanded if expand else campaign
    seeds = range(first_seed, first_seed + networks)
    start, total = time.monotonic(), room.Result()
    columns = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[failed]} failed")]
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("", total=networks, failed=0)
        for result in campaign.try_in_processes(seeds, jobs, room.try_seeds):
            total += result
            progress.update(task, advance=result.networks, failed=len(total.failures))
    data = room.summary(total, seeds, time.monotonic() - start)
    if keep:
        keep_run(EXPANDED_NETWORKS if expand else RANDOM_NETWORKS, data)
    text = expanded_networks_text if expand else random_networks_text
    console.print(text([data]), markup=False)
    for failure in data["failures"]:
        console.print(f"seed {failure['seed']}: {failure['message']}", markup=False)
    for failure in data["failures"][:shrink]:
        console.print(f"\n{failure['message']}\n{smallest_failing(failure['seed'])}", markup=False)
    raise SystemExit(bool(data["failures"]))


if __name__ == "__main__":
    main()
