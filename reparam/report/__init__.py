"""What was done and what was refused, and why: tables, their rows, and the page of a plan.

Files, in the order in which data flows: `tables`, `rows`, `html`.
"""

from reparam.report.tables import EqualizationReport, EqualizedRow, FusedRow, RefusedRow, Report

__all__ = ["EqualizationReport", "EqualizedRow", "FusedRow", "RefusedRow", "Report"]
