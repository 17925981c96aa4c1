"""Run a notebook as Jupyter would, without Jupyter.

A kernel is a process of its own that speaks a protocol, and brings some twenty packages with it.
These notebooks need none of that: their cells are Python and show text or HTML. So they are run
here, in one namespace, by the standard library; the tests run them, and so does the build of the
page that shows them.
"""

from __future__ import annotations

import ast
import io
import json
import linecache
import sys
import types
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Cell:
    """One cell of a notebook.

    Args:
        kind: ``"code"`` or ``"markdown"``.
        source: Its text.
    """

    kind: str
    source: str


@dataclass(frozen=True)
class Shown:
    """A cell that was run.

    Args:
        cell: The cell.
        printed: What it printed.
        value: What its last line is worth; None if it is no expression, or ends with a semicolon.
    """

    cell: Cell
    printed: str = ""
    value: Any = None


def read(path: Path) -> list[Cell]:
    """The cells of a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [Cell(cell["cell_type"], "".join(cell["source"])) for cell in cells]


def run(path: Path) -> Iterator[Shown]:
    """Run the cells one after the other.

    Args:
        path: The notebook.

    Yields:
        Each cell with what it shows.
    """
    # What a cell defines belongs to a module, and its source is found: both hold in Jupyter.
    module = types.ModuleType(f"notebook_{path.stem}")
    sys.modules[module.__name__] = module
    try:
        for number, cell in enumerate(read(path), 1):
            yield _run(cell, module, f"<{path.name}, cell {number}>")
    finally:
        del sys.modules[module.__name__]


def render(name: str) -> str:
    """A notebook as Markdown, with what its cells show.

    Args:
        name: Its path in the folder of the documentation.

    Returns:
        The Markdown.
    """
    parts: list[str] = []
    for shown in run(DOCS / name):
        if shown.cell.kind == "markdown":
            # A notebook lies one folder deeper than the page that shows it.
            parts.append(shown.cell.source.replace("](../", "]("))
            continue
        parts.append(f"```python\n{shown.cell.source}\n```")
        if shown.printed:
            parts.append(f"```text\n{shown.printed.rstrip()}\n```")
        if shown.value is not None:
            html = getattr(shown.value, "_repr_html_", None)
            inner = f"<pre>{escape(repr(shown.value))}</pre>" if html is None else html()
            parts.append(f'<div class="shown">\n{inner.strip()}\n</div>')
    return "\n\n".join(parts) + "\n"


def _run(cell: Cell, module: types.ModuleType, name: str) -> Shown:
    if cell.kind != "code":
        return Shown(cell)
    lines = cell.source.splitlines(keepends=True)
    linecache.cache[name] = len(cell.source), None, lines, name
    tree = ast.parse(cell.source, name)
    last = tree.body[-1] if tree.body else None
    shows = isinstance(last, ast.Expr) and not cell.source.rstrip().endswith(";")
    value = None
    with redirect_stdout(io.StringIO()) as printed:
        body = ast.Module(tree.body[:-1] if shows else tree.body, [])
        exec(compile(body, name, "exec"), vars(module))
        if shows and isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), vars(module))
    return Shown(cell, printed.getvalue(), value)
