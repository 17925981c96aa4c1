"""The page written down: by a template that escapes, with its style and its script inside.

The page may load nothing and run nothing but its own script: its first line says so to the browser.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reparam.report.columns import change, short
from reparam.report.html.drawn_graphs import Vertex
from reparam.report.html.graph_layout import BOX
from reparam.report.html.page_contents import Page

_COLORS = 8

_TITLE, _PLACE = 25, 27  # as many letters as fit into a box


def render(page: Page) -> str:
    """Write a page.

    Args:
        page: What is on it.

    Returns:
        The document.
    """
    environment = Environment(
        loader=PackageLoader("reparam.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        change=lambda pair: _arrows(change(*pair)),
        arrows=_arrows,
        short=short,
        by_region=_by_region,
        color=lambda number: number % _COLORS,
        start=lambda text: text if len(text) <= _TITLE else text[: _TITLE - 1] + "…",
        end=lambda text: text if len(text) <= _PLACE else "…" + text[1 - _PLACE :],
    )
    style, script = _own("style.css"), _own("script.js")
    return environment.get_template("page.html").render(
        page=page,
        box=BOX,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _by_region(vertices: Sequence[Vertex]) -> list[tuple[int, list[int]]]:
    """The positions of the vertices of each region; number 0 for those of none."""
    found: dict[int, list[int]] = {}
    for index, vertex in enumerate(vertices):
        found.setdefault(vertex.region or 0, []).append(index)
    return sorted(found.items())


def _arrows(text: str) -> str:
    return text.replace("->", "→")


def _own(name: str) -> Markup:
    """The text of a file of this package, which needs no escaping."""
    return Markup(
        files("reparam.report.html").joinpath("templates", name).read_text(encoding="utf-8")
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
