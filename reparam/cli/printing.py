"""Results for people, as tables and lines, and for programs, as JSON."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console, RenderableType

import reparam


def show(what: RenderableType) -> None:
    """Prints to stdout: as wide as the terminal, and in colour on one only."""
    from reparam.report import as_text, printable

    console = Console(force_jupyter=False)
    if isinstance(what, str):
        sys.stdout.write(printable(what) + "\n")
    elif console.is_terminal:
        console.print(what)
    else:
        sys.stdout.write(as_text(what).rstrip() + "\n")


def show_json(command: str, values: Mapping[str, Any]) -> None:
    """Prints one JSON object, which begins with the version and the command."""
    whole = {"reparam": reparam.__version__, "command": command, **values}
    sys.stdout.write(json.dumps(_finite(whole), indent=2, allow_nan=False) + "\n")


def say(text: str) -> None:
    """Says something to whoever looks on, on stderr, where no program reads."""
    click.echo(text, err=True)


def show_written(path: Path, content: str, *, as_json: bool) -> None:
    """Says that a file was written, and what is in it: on stderr where stdout is for programs."""
    click.echo(f"Wrote {path}{content}", err=as_json)


def error_line(error: BaseException) -> str:
    """The class of an error, and the first line of its message."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}"


def _finite(value: Any) -> Any:
    """The same values, null in place of what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
