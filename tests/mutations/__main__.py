"""Plants every mistake and shows which test notices: `python -m tests.mutations`."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import click
from rich.console import Console
from rich.progress import track

from tests.mutations.mistakes import MISTAKES
from tests.mutations.planting import TESTS, Outcome, first_failure, outcome, planted
from tests.support.correctness_page import MUTATIONS, mutations_text, run_versions, write_page


@click.command()
@click.option("--jobs", default=2, show_default=True, help="How many copies at a time.")
@click.option("--only", default="", help="Mistakes whose name contains this.")
@click.option("--tests", multiple=True, help="Test files, instead of all the fast ones.")
@click.option("--keep", is_flag=True, help="Keep the result in docs/.")
def main(jobs: int, only: str, tests: tuple[str, ...], keep: bool) -> None:
    """Plant deliberate mistakes in copies of the package, one at a time, and run the tests.

    The exit status is 1 if the tests miss one.
    """
    console, start = Console(), time.monotonic()
    chosen = [mistake for mistake in MISTAKES if only in mistake.name]
    files = list(tests) or TESTS
    with planted(None) as folder:
        broken = first_failure(folder, files)
    if broken is not None:
        raise click.ClickException(f"without any mistake this fails already: {broken}")
    with ThreadPoolExecutor(jobs) as pool:
        running = pool.map(lambda mistake: outcome(mistake, files), chosen)
        outcomes: list[Outcome] = list(track(running, total=len(chosen), console=console))
    data = {
        "mutations": [{**asdict(o), "seconds": round(o.seconds, 1)} for o in outcomes],
        **run_versions(time.monotonic() - start),
    }
    if keep:
        MUTATIONS.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        write_page()
    console.print(mutations_text(data), markup=False, soft_wrap=True)
    raise SystemExit(any(o.caught_by is None for o in outcomes))


if __name__ == "__main__":
    main()
