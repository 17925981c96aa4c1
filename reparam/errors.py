"""The ways in which the library says no: exceptions, and a value for the report."""

from __future__ import annotations

from dataclasses import dataclass


class ReparamError(Exception):
    """Bad input to a public call: says what was found, where, and what to do."""


class InvariantError(ReparamError):
    """A mistake of this library: a graph that breaks a law of graphs."""


@dataclass(frozen=True)
class Refusal:
    """Why something was not fused. A value, not an exception: it ends in the report.

    Args:
        reason: One sentence that a user of the model understands.
    """

    reason: str

    def __str__(self) -> str:
        return self.reason


class UntraceableError(Exception):
    """A module's own forward cannot be traced."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class MadeTensorError(UntraceableError):
    """A graph cannot hold a tensor that a forward makes of nothing but numbers."""
