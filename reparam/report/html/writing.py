"""Write the page of a plan; what the extra `html` installs is imported only here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from reparam.errors import ReparamError
from reparam.planning import PlannedPart
from reparam.report.tables import Report


def write_plan(
    path: str | os.PathLike[str], report: Report, parts: Sequence[PlannedPart], *, verify: bool
) -> None:
    """Write the page of a plan.

    Args:
        path: The file.
        report: The tables of the plan.
        parts: The planned parts.
        verify: Compare every region in float64 with what will replace it.

    Raises:
        ReparamError: If a package is missing.
    """
    with _needed():
        from reparam.report.html.page_contents import plan_page
        from reparam.report.html.rendering import render
    Path(path).write_text(render(plan_page(report, parts, verify=verify)), encoding="utf-8")


@contextmanager
def _needed() -> Iterator[None]:
    """Say what to install where a package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("igraph", "jinja2", "markupsafe"):
            raise
        raise ReparamError(
            f"a page needs {error.name}, which is not installed: pip install 'reparam[html]'"
        ) from error
