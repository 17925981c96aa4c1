"""What was fused, what was not and why."""

from reparam.report.tables import EqualizationReport, EqualizedRow, FusedRow, RefusedRow, Report

__all__ = ["EqualizationReport", "EqualizedRow", "FusedRow", "RefusedRow", "Report"]
