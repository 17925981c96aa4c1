"""Results for people, as tables and lines, and for programs, as JSON."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, RenderableType

import reparam

if TYPE_CHECKING:
    from reparam.report import FusedRow, RefusedRow, Report

_WIDTH = 120


def show(what: RenderableType) -> None:
    """Prints to stdout: as wide as the terminal, and in colour on one only."""
    console = Console()
    if isinstance(what, str):
        sys.stdout.write(what + "\n")
    elif console.is_terminal:
        console.print(what)
    else:
        text = io.StringIO()
        Console(file=text, width=_WIDTH, color_system=None, force_terminal=False).print(what)
        lines = [line.rstrip() for line in text.getvalue().rstrip().splitlines()]
        sys.stdout.write("\n".join(lines) + "\n")


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


def report_values(report: Report) -> dict[str, Any]:
    """The values of a report, by the keys that docs/command-line.md lists."""
    return {
        "class": report.model,
        "operators": _change(
            sum(row.counts[0] for row in report.fused), sum(row.counts[1] for row in report.fused)
        ),
        "fused": [_fused_values(row) for row in report.fused],
        "refused": [_refused_values(row) for row in report.refused],
        "notes": list(report.notes),
        "cost": report.unit,
    }


def _fused_values(row: FusedRow) -> dict[str, Any]:
    return {
        "place": row.place,
        "was": row.operators,
        "becomes": row.result,
        "operators": _change(*row.counts),
        "multiply_adds": _change(*row.multiply_adds),
        "cost": _change(*row.cost),
        "float64_error": row.error,
        "name": row.name,
    }


def _refused_values(row: RefusedRow) -> dict[str, Any]:
    return {"place": row.place, "operator": row.operator, "reason": row.reason}


def _change(before: float, after: float) -> dict[str, float]:
    return {"before": before, "after": after}


def _finite(value: Any) -> Any:
    """The same values, null in place of what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
