"""The columns of tables, from the entries of reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reparam.planning import MULTIPLY_ADDS
from reparam.report.entries import DroppedRow, FrozenRow, FusedRow, RefusedRow
from reparam.report.grouping import Part, by_reasons, kinds, without_sizes
from reparam.report.printing import Columns


def fused_columns(groups: Sequence[Part[FusedRow]], unit: str) -> Columns:
    """The rows of what was fused, each for a group of places; the unit is what the cost counts."""
    sized = [all(row.sized for row in group.rows) for group in groups]
    mixed = any(sized) and not all(sized)
    per = "\nper position" * bool(groups and not any(sized))
    columns: Columns = {
        "where": [_place(group) for group in groups],
        "was": [_operators(group) for group in groups],
        "becomes": [_results(group) for group in groups],
        "ops": [f"{_sum(g, 'counts', 0)} -> {_sum(g, 'counts', 1)}" for g in groups],
        f"{MULTIPLY_ADDS}{per}": [
            _amounts(group, "multiply_adds") + " per position" * (mixed and not known)
            for group, known in zip(groups, sized, strict=True)
        ],
    }
    if unit != MULTIPLY_ADDS:
        columns[unit] = [_amounts(group, "cost") for group in groups]
    errors = [[row.error for row in g.rows if row.error is not None] for g in groups]
    if any(errors):
        columns["float64 error"] = [f"{max(e):.0e}" if e else "-" for e in errors]
    return columns


def _place(group: Part[FusedRow]) -> str:
    many = len(group.rows)
    return group.rows[0].place if many == 1 else f"{group.label} · {many} places"


def _operators(group: Part[FusedRow]) -> str:
    return (
        group.rows[0].operators if len(group.rows) == 1 else kinds(r.operators for r in group.rows)
    )


def _results(group: Part[FusedRow]) -> str:
    results = [row.result for row in group.rows]
    return results[0] if len(results) == 1 else kinds(map(without_sizes, results))


def _sum(group: Part[FusedRow], of: str, place: int) -> Any:
    return sum(getattr(row, of)[place] for row in group.rows)


def _amounts(group: Part[FusedRow], of: str) -> str:
    """What some rows cost together; numbers per position do not add up."""
    costs = {getattr(row, of) for row in group.rows}
    if len(group.rows) > 1 and not all(row.sized for row in group.rows):
        return f"each {change(*costs.pop())}" if len(costs) == 1 else ""
    return change(_sum(group, of, 0), _sum(group, of, 1))


def singly(rows: Sequence[FusedRow]) -> list[Part[FusedRow]]:
    """Each row as a group of its own."""
    return [Part(row.place, (row,)) for row in rows]


def parameter_columns(
    rows: Sequence[FrozenRow | DroppedRow], verb: str, most: int | None = None
) -> Columns:
    """Parts with parameters; what is more than the most lines in the last one."""
    shown = rows if most is None or len(rows) <= most else rows[: most - 1]
    rest = rows[len(shown) :]
    return {
        "where": [row.place for row in shown] + ["others"] * bool(rest),
        verb: [row.operator for row in shown] + [kinds(row.operator for row in rest)] * bool(rest),
        "parameters": [", ".join(row.parameters) for row in shown]
        + [f"{sum(len(row.parameters) for row in rest)} more"] * bool(rest),
    }


def refusal_columns(rows: Sequence[RefusedRow], verb: str) -> Columns:
    """What stays, and why."""
    return {
        "where": [row.place for row in rows],
        verb: [row.operator for row in rows],
        "because": [row.reason for row in rows],
    }


def reason_columns(rows: Sequence[RefusedRow], verb: str, most: int) -> Columns:
    """What stays, by reasons: those first that say what to do, the last ones only counted."""
    groups = by_reasons(rows)
    shown, rest = groups[:most], groups[most:]
    columns: Columns = {"where": [], verb: [], "because": []}
    for group in shown:
        first, many = group.rows[0], len(group.rows) - 1
        columns["where"].append(f"{first.place} and {many} more" if many else first.place)
        columns[verb].append(kinds(row.operator for row in group.rows))
        columns["because"].append(first.reason if not many else group.label)
    if rest:
        left = [row.operator for group in rest for row in group.rows]
        columns["where"].append(f"{len(left)} others")
        columns[verb].append(kinds(left))
        columns["because"].append(f"{len(rest)} other reasons, which table() shows")
    return columns


def change(before: float, after: float) -> str:
    """A number before and after, as the tables show it."""
    return f"{short(before)} -> {short(after)}"


def short(value: float) -> str:
    """A number as the tables show it: three digits and a unit."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"
