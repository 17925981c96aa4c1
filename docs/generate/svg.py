"""Rows of kernels as SVG, in the colours of the page around it.

A figure is a few rows; a row is grids of numbers with signs between them. Colours are classes that
`figures.css` gives values, so that a figure is readable on a light page and on a dark one.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isnan
from xml.sax.saxutils import escape, quoteattr

import torch
from torch import Tensor

_LETTER = 7.0
_LINE = 18.0
_GAP = 14.0
_BLOCK = 6.0
_ACROSS = 100


@dataclass(frozen=True)
class Grid:
    """A table of numbers; NaN is a place without a tap.

    Args:
        values: The numbers, with two axes.
        name: What is written above it.
        note: What is written below it.
        blocks: Rows and columns of the blocks that are set apart.
        marked: Cells that are framed.
        cell: Width and height of a cell.
    """

    values: Tensor
    name: str = ""
    note: str = ""
    blocks: tuple[int, int] | None = None
    marked: Tensor | None = None
    cell: float = 34.0

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the table alone."""
        rows, columns = self.values.shape
        across, down = self.offset(rows - 1, columns - 1)
        return across + self.cell, down + self.cell

    @property
    def width(self) -> float:
        """Width with what is written above and below."""
        return max(self.size[0], *(_LETTER * len(text) for text in (self.name, self.note)))

    def offset(self, row: int, column: int) -> tuple[float, float]:
        """Where a cell begins."""
        high, wide = self.blocks or self.values.shape
        return (
            column * self.cell + column // wide * _BLOCK,
            row * self.cell + row // high * _BLOCK,
        )


@dataclass(frozen=True)
class Sign:
    """A word or an operator between two grids."""

    text: str

    @property
    def size(self) -> tuple[float, float]:
        """Width and height."""
        return self.width, _LINE

    @property
    def width(self) -> float:
        """Width of the text."""
        return _LETTER * 1.4 * len(self.text)


Row = Sequence[Grid | Sign]


def number(value: float) -> str:
    """A number as short as it can be written: 2, −1, 0.25, 1/9."""
    sign, size = "−" if value < 0 else "", abs(value)
    if abs(size * 100 - round(size * 100)) < 1e-9:
        return sign + f"{size:.2f}".rstrip("0").rstrip(".")
    fraction = Fraction(size).limit_denominator(99)
    if abs(size - fraction) < 1e-9:
        return f"{sign}{fraction}"
    return f"{sign}{size:.2f}"


def spoken(values: Tensor) -> str:
    """The numbers of a kernel for those who do not see it."""
    rows = values.tolist()
    return "; ".join(
        " ".join("empty" if isnan(value) else number(value) for value in row) for row in rows
    )


def figure(
    name: str, rows: Sequence[Row], *, said: str, caption: str, refused: Sequence[str] = ()
) -> str:
    """The HTML of a figure.

    Args:
        name: Its name, unique on the page.
        rows: What it shows.
        said: What it shows, in words.
        caption: What is written below it.
        refused: What the law refuses, one line each.
    """
    parts: list[str] = []
    top, right = 0.0, 0.0
    for row in rows:
        parts_of_row, width, height = _row(row, top)
        parts += parts_of_row
        top, right = top + height + _GAP, max(right, width)
    for line in refused:
        first, *more = textwrap.wrap(line, _ACROSS)
        for text, kind in [
            (f"✗ {first}", "refused"),
            *((f"   {rest}", "refused") for rest in more),
        ]:
            parts.append(_text(0, top + _LINE / 2, text, kind))
            top, right = top + _LINE, max(right, _LETTER * len(text))
    box = f"0 0 {right:.0f} {top:.0f}"
    return (
        f'<figure class="law" id="figure-{name}">\n'
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" width="{right:.0f}" '
        f'role="img" aria-label={quoteattr(said)}>\n' + "\n".join(parts) + "\n</svg>\n"
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>\n"
    )


def _row(items: Row, top: float) -> tuple[list[str], float, float]:
    """The elements of a row, its width and its height."""
    above = _LINE if any(isinstance(item, Grid) and item.name for item in items) else 0.0
    below = _LINE if any(isinstance(item, Grid) and item.note for item in items) else 0.0
    tallest = max(item.size[1] for item in items)
    middle = top + above + tallest / 2
    parts: list[str] = []
    left = 0.0
    for item in items:
        centre = left + item.width / 2
        if isinstance(item, Sign):
            parts.append(_text(centre, middle, item.text, "sign"))
        else:
            wide, high = item.size
            parts += _cells(item, centre - wide / 2, middle - high / 2)
            # A name stands right above its own grid, a note right below it.
            parts.append(_text(centre, middle - high / 2 - _LINE / 2, item.name, "name"))
            parts.append(_text(centre, middle + high / 2 + _LINE / 2, item.note, "note"))
        left += item.width + _GAP
    return [part for part in parts if part], left - _GAP, above + tallest + below


def _cells(grid: Grid, left: float, top: float) -> list[str]:
    values, cell = grid.values, grid.cell
    known = values[~values.isnan()].abs()
    largest = float(known.max()) if known.numel() else 1.0
    marked = torch.zeros_like(values).bool() if grid.marked is None else grid.marked
    parts = []
    for row, line in enumerate(values.tolist()):
        for column, value in enumerate(line):
            across, down = grid.offset(row, column)
            x, y = left + across, top + down
            sign = "empty" if isnan(value) else "minus" if value < 0 else "plus"
            kind = f"cell {sign} marked" if bool(marked[row, column]) else f"cell {sign}"
            shade = 0.0 if isnan(value) else 0.6 * abs(value) / (largest or 1.0)
            parts.append(
                f'<rect class="{kind}" x="{x + 1:.1f}" y="{y + 1:.1f}" width="{cell - 2:.0f}" '
                f'height="{cell - 2:.0f}" rx="3" fill-opacity="{shade:.2f}"/>'
            )
            if not isnan(value):
                kind = "zero" if value == 0 else "value"
                parts.append(_text(x + cell / 2, y + cell / 2, number(value), kind))
    return parts


def _text(x: float, y: float, text: str, kind: str) -> str:
    if not text:
        return ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
