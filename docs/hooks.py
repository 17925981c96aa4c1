"""What `mkdocs build` adds to the pages: a comment in a page names what code puts in its place.

* ``<!-- figure: NAME -->``: a figure of `generate.figures`;
* ``<!-- rooms: PACKAGE -->``: the table of `generate.rooms`;
* ``<!-- notebook: PATH -->``: a notebook, run by `generate.notebook`;
* ``<!-- part: NAME -->``: what README.md has between its comments ``NAME: begin`` and ``end``.

Elsewhere, say where a page is read as plain Markdown, such a comment is not seen.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from generate.figures import FIGURES
from generate.notebook import render
from generate.rooms import table

_COMMENT = re.compile(
    r"^<!-- (?P<kind>figure|rooms|notebook|part): (?P<name>\S+) -->$", re.MULTILINE
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts in what the comments of a page name.

    Args:
        markdown: The page.

    Returns:
        The page with what they name.

    Raises:
        KeyError: If there is no such figure.
    """
    return _COMMENT.sub(lambda found: _MAKERS[found["kind"]](found["name"]), markdown)


def _part(name: str) -> str:
    """A part of the README, which is a page of its own elsewhere."""
    readme = Path(__file__).resolve().parents[1] / "README.md"
    begin, end = (f"<!-- {name}: {word} -->" for word in ("begin", "end"))
    return readme.read_text(encoding="utf-8").split(begin)[1].split(end)[0].strip()


_MAKERS = {
    "figure": lambda name: FIGURES[name](),
    "rooms": table,
    "notebook": render,
    "part": _part,
}
