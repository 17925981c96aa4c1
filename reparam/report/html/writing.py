"""Write the page of a plan; what the extra `html` installs is imported only here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path

from reparam.errors import ReparamError
from reparam.planning import PlannedPart
from reparam.report.tables import Report


@dataclass(frozen=True)
class Page:
    """The page of a plan, which a notebook shows where it is a cell's last line.

    Args:
        html: The page.
    """

    html: str

    def __repr__(self) -> str:
        return f"<Page of {len(self.html):,} characters>"

    def _repr_html_(self) -> str:
        style = "width: 100%; height: 40em; border: 1px solid #8888"
        return f'<iframe srcdoc="{escape(self.html)}" style="{style}"></iframe>'


def write_plan(
    path: str | os.PathLike[str] | None,
    report: Report,
    parts: Sequence[PlannedPart],
    *,
    verify: bool,
) -> Page:
    """Write the page of a plan.

    Args:
        path: The file; None writes none.
        report: The tables of the plan.
        parts: The planned parts.
        verify: Compare every region in float64 with what will replace it.

    Returns:
        The page.

    Raises:
        ReparamError: If a package is missing.
    """
    with _needed():
        from reparam.report.html.page_contents import plan_page
        from reparam.report.html.rendering import render
    page = Page(render(plan_page(report, parts, verify=verify)))
    if path is not None:
        Path(path).write_text(page.html, encoding="utf-8")
    return page


@contextmanager
def _needed() -> Iterator[None]:
    """Say what to install where a package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("jinja2", "markupsafe"):
            raise
        raise ReparamError(
            f"a page needs {error.name}, which is not installed: pip install 'reparam[html]'"
        ) from error
