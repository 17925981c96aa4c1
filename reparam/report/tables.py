"""What was fused, what was not and why: plain data that prints itself as tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console, Group

from reparam.planning import MULTIPLY_ADDS
from reparam.report.columns import (
    change,
    fused_columns,
    parameter_columns,
    reason_columns,
    refusal_columns,
    singly,
)
from reparam.report.entries import (
    DroppedRow,
    EqualizedRow,
    ExpandedRow,
    FrozenRow,
    FusedRow,
    RefusedRow,
)
from reparam.report.grouping import by_parts, within
from reparam.report.printing import Columns, Printed, as_text, rendered
from reparam.report.values import both, fused_values, part_values

_SHOWN = 20
"""So many rows are shown in a notebook without being asked for."""


@dataclass(repr=False)
class Report(Printed):
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
        if not self.fused:
            return f"{self.model}: nothing is fused; refused: {len(self.refused)}"
        before = sum(row.counts[0] for row in self.fused)
        after = sum(row.counts[1] for row in self.fused)
        return (
            f"{self.model}: {before} operators become {after}, in "
            f"{_many(len(self.fused), 'place')}; refused: {len(self.refused)}"
        )

    def table(
        self, depth: int | None = None, *, refused: bool = True, limit: int | None = None
    ) -> str:
        """All that was fused and refused, as text; printing groups rows where there are many.

        Args:
            depth: Group what was fused by the first so many names of its places; by default each
                has a row of its own.
            refused: Whether to show what was refused, too.
            limit: The most rows of each table; by default all.

        Returns:
            The tables.

        Examples:
            >>> import torch
            >>> import reparam
            >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)
            >>> plan = reparam.plan(torch.nn.Sequential(*layers).eval())
            >>> print(plan.table(depth=1))
            Sequential: 2 operators become 1, in 1 place; refused: 0
            <BLANKLINE>
                                                                        multiply-adds
             where   was                    becomes            ops      per position
             ────────────────────────────────────────────────────────────────────────
             1       Conv2d + BatchNorm2d   conv 3x3, 3 -> 8   2 -> 1   216 -> 216
            <BLANKLINE>
        """
        groups = singly(self.fused) if depth is None else by_parts(self.fused, depth)
        tables = [fused_columns(groups, self.unit), *self._others()]
        if refused:
            tables.append(refusal_columns(self.refused, "stays"))
        cut = [{title: cells[:limit] for title, cells in columns.items()} for columns in tables]
        return as_text(Group(*rendered(Console(), self.summary(), cut, self.notes)))

    def to_dict(self) -> dict[str, Any]:
        """What the report says, as plain values; `json.dumps` takes them.

        The keys stay; others may join them. The command line prints the same with ``--json``.

        Returns:
            ``class``; ``operators`` (``before``, ``after``); ``fused``, a list of ``place``,
            ``was``, ``becomes``, ``operators``, ``multiply_adds`` and ``cost`` (``before``,
            ``after``), ``sized``, ``float64_error``, ``name`` and ``basis``; ``refused``, a list
            of ``place``, ``operator`` and ``reason``; ``frozen`` and ``dropped``, lists of
            ``place``, ``operator`` and ``parameters``; ``notes``; ``cost``, what it counts. A
            number that is not finite is None.

        Examples:
            >>> import torch
            >>> import reparam
            >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)
            >>> plan = reparam.plan(torch.nn.Sequential(*layers).eval())
            >>> plan.report.to_dict()["operators"]
            {'before': 2, 'after': 1}
        """
        ends = (sum(row.counts[end] for row in self.fused) for end in (0, 1))
        return {
            "class": self.model,
            "operators": both(*ends),
            "fused": [fused_values(row) for row in self.fused],
            "refused": [asdict(row) for row in self.refused],
            "frozen": [part_values(row) for row in self.frozen],
            "dropped": [part_values(row) for row in self.dropped],
            "notes": list(self.notes),
            "cost": self.unit,
        }

    def tables(self) -> Iterator[Columns]:
        """All rows."""
        yield fused_columns(singly(self.fused), self.unit)
        yield from self._others()
        yield refusal_columns(self.refused, "stays")

    def short_tables(self, most: int) -> Iterator[Columns]:
        """The rows by the parts that they are in, and those that stay by reasons."""
        yield fused_columns(within(self.fused, most), self.unit)
        yield parameter_columns(self.frozen, "stays beside it, frozen", most // 4)
        yield parameter_columns(self.dropped, "is dropped", most // 4)
        yield reason_columns(self.refused, "stays", most // 2)

    def sections(self) -> Iterator[tuple[str, Columns]]:
        """The tables as a notebook shows them: part by part, to be opened, where it is many."""
        if len(self.fused) <= _SHOWN:
            yield "", fused_columns(singly(self.fused), self.unit)
        else:
            yield "the parts of the model", fused_columns(within(self.fused, _SHOWN), self.unit)
            for part in by_parts(self.fused, 1):
                many = f"{part.label}: {_many(len(part.rows), 'place')}"
                yield many, fused_columns(singly(part.rows), self.unit)
        frozen = parameter_columns(self.frozen, "stays beside it, frozen")
        yield f"what stays beside it, frozen: {len(self.frozen)}", frozen
        yield f"what is dropped: {len(self.dropped)}", parameter_columns(self.dropped, "is dropped")
        if len(self.refused) <= _SHOWN:
            yield "", refusal_columns(self.refused, "stays")
        else:
            yield "what stays, by reasons", reason_columns(self.refused, "stays", len(self.refused))
            yield f"what stays: {len(self.refused)}", refusal_columns(self.refused, "stays")

    def _others(self) -> Iterator[Columns]:
        yield parameter_columns(self.frozen, "stays beside it, frozen")
        yield parameter_columns(self.dropped, "is dropped")


@dataclass(repr=False)
class EqualizationReport(Printed):
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

    def tables(self) -> Iterator[Columns]:
        """All rows."""
        rows = self.equalized
        yield {
            "where": [row.place for row in rows],
            "layer": [row.operator for row in rows],
            "channels scaled": [f"{row.channels[0]} of {row.channels[1]}" for row in rows],
            "largest / smallest range": [
                f"{row.spread[0]:.3g} -> {row.spread[1]:.3g}" for row in rows
            ],
        }
        yield refusal_columns(self.refused, "is not scaled")


@dataclass(repr=False)
class ExpansionReport(Printed):
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

    def tables(self) -> Iterator[Columns]:
        """All rows."""
        rows = self.expanded
        yield {
            "where": [row.place for row in rows],
            "layer": [row.operator for row in rows],
            "branches": [str(row.branches) for row in rows],
            "parameters": [change(*row.parameters) for row in rows],
        }
        yield refusal_columns(self.refused, "is not expanded")


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
