"""Progress on stderr, in terminals only, while something takes its time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def working(description: str, steps: int | None = None) -> Iterator[Callable[[int], None]]:
    """Shows that something is being done; what the model's code prints goes to stderr meanwhile.

    Args:
        description: What is being done.
        steps: How many steps it takes. Where they are known, the bar is only drawn when told to:
            a thread that draws would disturb what is measured.

    Yields:
        What takes the number of steps that are done.
    """
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        auto_refresh=steps is None,
        disable=not console.is_terminal,
    )
    with redirect_stdout(sys.stderr), bar:
        task = bar.add_task(description, total=steps)

        def show(done: int) -> None:
            bar.update(task, completed=done)
            if steps is not None and done % max(steps // 10, 1) == 0:
                bar.refresh()

        yield show
