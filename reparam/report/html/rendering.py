"""The page written down: by a template that escapes, with its style and its script inside.

The page may load nothing and run nothing but its own script: its first line says so to the browser.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reparam.report.columns import change, short
from reparam.report.html.graph_data import graph_data
from reparam.report.html.page_contents import Page

_COLORS = 8

_SCRIPTS = ("graph", "layout", "drawing", "viewport", "export", "details", "page")
"""The files of the script, each of which may use those before it."""


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
        color=lambda number: number % _COLORS,
    )
    # Compact: the graphs are much of a large page.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    style = _own("style.css")
    files_of_script = (_own(f"script/{name}.js") for name in _SCRIPTS)
    script = Markup("\n").join([Markup('"use strict";'), *files_of_script])
    return environment.get_template("page.html").render(
        page=page,
        graphs=graph_data(page.model, page.parts),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


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
