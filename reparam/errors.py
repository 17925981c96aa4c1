"""The two ways in which the library says no: an exception, and a value for the report."""

from __future__ import annotations

from dataclasses import dataclass


class ReparamError(Exception):
    """Bad input to a public call: says what was found, where, and what to do."""


@dataclass(frozen=True)
class Refusal:
    """Why something was not fused. A value, not an exception: it ends in the report.

    Args:
        reason: One sentence that a user of the model understands.
    """

    reason: str

    def __str__(self) -> str:
        return self.reason
