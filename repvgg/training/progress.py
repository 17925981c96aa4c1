"""A progress bar, in terminals only."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(*, show: bool = True) -> Progress:
    """Makes a bar whose tasks have a field `note`, shown behind the percentage."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not (show and console.is_terminal),
    )
