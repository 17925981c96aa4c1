"""What was done and what was refused, and why: tables, their rows, and the page of a plan.

Files, in the order in which data flows: `entries`, `grouping`, `printing`, `columns`, `values`,
`tables`, `rows`, `html`.
"""

from reparam.report.entries import (
    DroppedRow,
    EqualizedRow,
    ExpandedRow,
    FrozenRow,
    FusedRow,
    RefusedRow,
)
from reparam.report.printing import as_text, printable
from reparam.report.rows import (
    described,
    fused_row,
    operator_kind,
    place,
    refused_rows,
    taught_rules,
    untraced_row,
)
from reparam.report.tables import EqualizationReport, ExpansionReport, Report, refuse_all

__all__ = [
    "DroppedRow",
    "EqualizationReport",
    "EqualizedRow",
    "ExpandedRow",
    "ExpansionReport",
    "FrozenRow",
    "FusedRow",
    "RefusedRow",
    "Report",
]
