"""What `mkdocs build` adds to the pages: a comment in a page names what code puts in its place.

* ``<!-- figure: NAME -->``: a figure of `generate.figures`;
* ``<!-- rooms: PACKAGE -->``: the table of `generate.rooms`;
* ``<!-- notebook: PATH -->``: a notebook, run by `generate.notebook`.

Elsewhere, say where a page is read as plain Markdown, such a comment is not seen.
"""

from __future__ import annotations

import re
from typing import Any

from generate.figures import FIGURES
from generate.notebook import render
from generate.rooms import table

_COMMENT = re.compile(r"^<!-- (?P<kind>figure|rooms|notebook): (?P<name>\S+) -->$", re.MULTILINE)


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


_MAKERS = {"figure": lambda name: FIGURES[name](), "rooms": table, "notebook": render}
