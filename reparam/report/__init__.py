"""What was done and what was refused, and why: tables, their rows, and the page of a plan.

Files, in the order in which data flows: `tables`, `rows`, `html`.
"""

from reparam.report.rows import (
    described,
    fused_row,
    operator_kind,
    place,
    refused_rows,
    taught_rules,
    untraced_row,
)
from reparam.report.tables import (
    DroppedRow,
    EqualizationReport,
    EqualizedRow,
    ExpandedRow,
    ExpansionReport,
    FrozenRow,
    FusedRow,
    RefusedRow,
    Report,
    refuse_all,
)

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
