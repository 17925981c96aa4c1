"""The entries of reports as plain values, which JSON knows."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from reparam.report.entries import DroppedRow, FrozenRow, FusedRow


def fused_values(row: FusedRow) -> dict[str, Any]:
    """One value that became one operator."""
    return {
        "place": row.place,
        "was": row.operators,
        "becomes": row.result,
        "operators": both(*row.counts),
        "multiply_adds": both(*row.multiply_adds),
        "cost": both(*row.cost),
        "sized": row.sized,
        "basis": row.basis,
        "float64_error": _finite(row.error),
        "name": row.name,
    }


def part_values(row: FrozenRow | DroppedRow) -> dict[str, Any]:
    """One part that stays beside an operator, or that went."""
    return {**asdict(row), "parameters": list(row.parameters)}


def both(before: float, after: float) -> dict[str, float | None]:
    """A number before and after."""
    return {"before": _finite(before), "after": _finite(after)}


def _finite(value: float | None) -> float | None:
    """None in place of what JSON has no number for."""
    return value if value is None or math.isfinite(value) else None
