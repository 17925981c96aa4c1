"""What was fused, what was not and why: plain data that prints itself as tables."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from reparam.planning import MULTIPLY_ADDS

Columns: TypeAlias = dict[str, list[str]]
"""The columns of a table by their titles."""


@dataclass(frozen=True)
class FusedRow:
    """One value that became one operator.

    Args:
        place: Where in the model the value is computed.
        operators: What was there, by kind and number.
        result: What is there now.
        multiply_adds: Multiply-adds per output position before and after (in all, if the shapes
            were known).
        counts: Number of operators before and after.
        error: Relative difference on a random input in float64; None if not verified.
        name: Where the new operator is registered; empty before it is applied.
        cost: What the cost function gives, before and after.
    """

    place: str
    operators: str
    result: str
    multiply_adds: tuple[float, float]
    counts: tuple[int, int]
    error: float | None = None
    name: str = ""
    cost: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class RefusedRow:
    """One operator that stays, and why.

    Args:
        place: Where in the model it is.
        operator: What it is.
        reason: Why it stays.
    """

    place: str
    operator: str
    reason: str


@dataclass(frozen=True)
class FrozenRow:
    """One part that stays as it was beside the operator in its place, since other code runs it.

    It needs no gradient: whatever trains the model trains the operator.

    Args:
        place: Where in the model it is.
        operator: What it is.
        parameters: Names of its parameters in the model.
    """

    place: str
    operator: str
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class DroppedRow:
    """One part that went, since eval mode never needs it.

    Args:
        place: Where in the model it was.
        operator: What it was.
        parameters: Names of its parameters in the model.
    """

    place: str
    operator: str
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class EqualizedRow:
    """One layer with scaled weights.

    Args:
        place: Where in the model it is.
        operator: What it is.
        channels: How many of its output channels have a scale other than 1, and all.
        spread: The largest range of an output channel over the smallest one, before and after;
            channels without weights do not count.
    """

    place: str
    operator: str
    channels: tuple[int, int]
    spread: tuple[float, float]


class _Printed(ABC):
    """Prints as a table in a terminal, as text and in a notebook."""

    notes: list[str]

    @abstractmethod
    def summary(self) -> str:
        """The result in one line."""

    @abstractmethod
    def _tables(self) -> Iterator[Columns]: ...

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # What others named is text, in which nothing is markup.
        yield console.render_str(self.summary(), markup=False, emoji=False)
        for columns in self._tables():
            table = Table(*columns, box=box.SIMPLE, pad_edge=False)
            for column in table.columns:
                column.overflow = "fold"
            for row in zip(*columns.values(), strict=True):
                table.add_row(*map(Text, row))
            if table.row_count:
                yield table
        for note in self.notes:
            yield console.render_str(f"note: {note}", markup=False, emoji=False)

    def __str__(self) -> str:
        output = io.StringIO()
        Console(file=output, width=120, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in output.getvalue().splitlines())

    def _repr_html_(self) -> str:
        console = Console(file=io.StringIO(), width=120, record=True)
        console.print(self)
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


@dataclass
class Report(_Printed):
    """What one call of `fuse` or `plan` found.

    Args:
        model: The class of the model.
        fused: One row per value that became one operator.
        refused: One row per operator that stays although it is affine, or that has no graph.
        notes: What else a user should know.
        unit: What the cost function counts.
        frozen: One row per part that stays beside the operator in its place, for other code.
        dropped: One row per part that went because nobody needs it.
        options: What the call was asked for, which `reparam.load` asks for again.
    """

    model: str
    fused: list[FusedRow] = field(default_factory=list)
    refused: list[RefusedRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unit: str = MULTIPLY_ADDS
    frozen: list[FrozenRow] = field(default_factory=list)
    dropped: list[DroppedRow] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict, repr=False)

    def summary(self) -> str:
        """The result in one line."""
        before = sum(row.counts[0] for row in self.fused)
        after = sum(row.counts[1] for row in self.fused)
        return (
            f"{self.model}: {before} operators become {after}, in "
            f"{_many(len(self.fused), 'place')}; refused: {len(self.refused)}"
        )

    def _tables(self) -> Iterator[Columns]:
        columns: Columns = {
            "where": [row.place for row in self.fused],
            "was": [row.operators for row in self.fused],
            "becomes": [row.result for row in self.fused],
            "ops": [f"{row.counts[0]} -> {row.counts[1]}" for row in self.fused],
            MULTIPLY_ADDS: [change(*row.multiply_adds) for row in self.fused],
        }
        if self.unit != MULTIPLY_ADDS:
            columns[self.unit] = [change(*row.cost) for row in self.fused]
        errors = [row.error for row in self.fused]
        if any(error is not None for error in errors):
            columns["float64 error"] = ["-" if e is None else f"{e:.0e}" for e in errors]
        yield columns
        yield _parameters(self.frozen, "stays beside it, frozen")
        yield _parameters(self.dropped, "is dropped")
        yield _refusals(self.refused, "stays")


@dataclass
class EqualizationReport(_Printed):
    """What one call of `equalize` did.

    Args:
        model: The class of the model.
        equalized: One row per layer with scaled weights.
        refused: One row per layer whose outputs are not scaled, or that has no graph.
        notes: What else a user should know.
    """

    model: str
    equalized: list[EqualizedRow] = field(default_factory=list)
    refused: list[RefusedRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """The result in one line."""
        channels = sum(row.channels[0] for row in self.equalized)
        return (
            f"{self.model}: {_many(channels, 'channel')} scaled, in "
            f"{_many(len(self.equalized), 'layer')}; refused: {len(self.refused)}"
        )

    def _tables(self) -> Iterator[Columns]:
        rows = self.equalized
        yield {
            "where": [row.place for row in rows],
            "layer": [row.operator for row in rows],
            "channels scaled": [f"{row.channels[0]} of {row.channels[1]}" for row in rows],
            "largest / smallest range": [
                f"{row.spread[0]:.3g} -> {row.spread[1]:.3g}" for row in rows
            ],
        }
        yield _refusals(self.refused, "is not scaled")


@dataclass(frozen=True)
class ExpandedRow:
    """One layer that became a sum of branches.

    Args:
        place: Where in the model it is.
        operator: What it was.
        branches: How many branches it has, its own kernel counted.
        parameters: Its number of parameters before and after.
    """

    place: str
    operator: str
    branches: int
    parameters: tuple[int, int]


@dataclass
class ExpansionReport(_Printed):
    """What one call of `expand` did.

    Args:
        model: The class of the model.
        block: The name of the block.
        expanded: One row per layer that has branches now.
        refused: One row per layer that stays.
        notes: What else a user should know.
    """

    model: str
    block: str
    expanded: list[ExpandedRow] = field(default_factory=list)
    refused: list[RefusedRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """The result in one line."""
        return (
            f"{self.model}: {_many(len(self.expanded), 'layer')} with the branches of "
            f"{self.block}; refused: {len(self.refused)}"
        )

    def _tables(self) -> Iterator[Columns]:
        rows = self.expanded
        yield {
            "where": [row.place for row in rows],
            "layer": [row.operator for row in rows],
            "branches": [str(row.branches) for row in rows],
            "parameters": [change(*row.parameters) for row in rows],
        }
        yield _refusals(self.refused, "is not expanded")


def _parameters(rows: Sequence[FrozenRow | DroppedRow], verb: str) -> Columns:
    return {
        "where": [row.place for row in rows],
        verb: [row.operator for row in rows],
        "parameters": [", ".join(row.parameters) for row in rows],
    }


def _refusals(rows: list[RefusedRow], verb: str) -> Columns:
    return {
        "where": [row.place for row in rows],
        verb: [row.operator for row in rows],
        "because": [row.reason for row in rows],
    }


def refuse_all(report: Report | EqualizationReport, reason: str) -> None:
    """Take down that nothing of what a report says was done, since the model was left as it was."""
    if isinstance(report, Report):
        rows = [RefusedRow(row.place, row.operators, reason) for row in report.fused]
        report.fused.clear()
    else:
        rows = [RefusedRow(row.place, row.operator, reason) for row in report.equalized]
        report.equalized.clear()
    report.refused.extend(rows)


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def change(before: float, after: float) -> str:
    """A number before and after, as the tables show it."""
    return f"{short(before)} -> {short(after)}"


def short(value: float) -> str:
    """A number as the tables show it: three digits and a unit."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"
