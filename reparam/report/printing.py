"""How reports print themselves: as tables in a terminal, as text, in a notebook."""

from __future__ import annotations

import io
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from html import escape
from typing import TypeAlias

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

Columns: TypeAlias = dict[str, list[str]]
"""The columns of a table by their titles."""


class Printed(ABC):
    """Prints as a table in a terminal, as text and in a notebook."""

    notes: list[str]

    @abstractmethod
    def summary(self) -> str:
        """The result in one line."""

    @abstractmethod
    def tables(self) -> Iterator[Columns]:
        """All rows."""

    def short_tables(self, most: int) -> Iterator[Columns]:
        """The rows, in no more than so many lines for each table where they can be grouped."""
        yield from self.tables()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        sizes = (None, *_SIZES)
        for most in sizes:
            tables = self.tables() if most is None else self.short_tables(most)
            shown = [*rendered(console, self.summary(), tables, self.notes)]
            if most == sizes[-1] or len(console.render_lines(Group(*shown), options)) <= LINES:
                break
        yield from shown

    def __str__(self) -> str:
        return as_text(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.summary()}>"

    def _repr_html_(self) -> str:
        return as_html(self.summary(), self.sections(), self.notes)

    def sections(self) -> Iterator[tuple[str, Columns]]:
        """The tables under their titles, as a notebook shows them: to be opened one by one."""
        for columns in self.tables():
            yield "", columns


LINES = 60
"""What is printed has no more lines, if it can be grouped."""

_SIZES = (24, 16, 10, 6, 4)


def rendered(
    console: Console, summary: str, tables: Iterable[Columns], notes: Iterable[str]
) -> Iterator[RenderableType]:
    """What is printed; what others named is text, in which nothing is markup."""
    yield console.render_str(summary, markup=False, emoji=False)
    for columns in tables:
        table = Table(*columns, box=box.SIMPLE, pad_edge=False)
        for column in table.columns:
            column.overflow = "fold"
        for row in zip(*columns.values(), strict=True):
            table.add_row(*map(Text, row))
        if table.row_count:
            yield table
    for note in notes:
        yield console.render_str(f"note: {note}", markup=False, emoji=False)


def as_text(what: RenderableType) -> str:
    """What would be printed, as text, wherever that is: a notebook is no terminal, either."""
    output = io.StringIO()
    console = Console(
        file=output, width=120, color_system=None, force_terminal=False, force_jupyter=False
    )
    console.print(what)
    return printable("\n".join(line.rstrip() for line in output.getvalue().splitlines()))


_ASCII = str.maketrans({"─": "-", "·": "-", "×": "x", "→": ">", "…": "..."})


def printable(text: str) -> str:
    """The same text, in simpler characters where stdout has no others: on code pages of Windows."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)
    except LookupError:  # a stream of somebody's own
        return text
    return text


def as_html(summary: str, sections: Iterable[tuple[str, Columns]], notes: Iterable[str]) -> str:
    """What a notebook shows: the result in one line, and tables under titles that open them."""
    parts = [f"<p>{escape(summary)}</p>"]
    for title, columns in sections:
        table = _html_table(columns)
        if table and title:
            table = f"<details><summary>{escape(title)}</summary>{table}</details>"
        parts.append(table)
    parts += [f"<p>note: {escape(note)}</p>" for note in notes]
    return f"<div>{''.join(parts)}</div>"


def _html_table(columns: Columns) -> str:
    rows = [*zip(*columns.values(), strict=True)]
    if not rows:
        return ""
    style = ' style="text-align: left"'
    head = "".join(f"<th{style}>{escape(title)}</th>" for title in columns)
    body = "".join(
        f"<tr>{''.join(f'<td{style}>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
