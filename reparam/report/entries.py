"""The entries of reports, one for each operator, layer or part: plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FusedRow:
    """One value that became one operator.

    Args:
        place: Where in the model the value is computed.
        operators: What was there, by kind and number.
        result: What is there now.
        multiply_adds: Multiply-adds before and after, of one call if it is sized, else for each
            position of the output.
        counts: Number of operators before and after.
        error: Relative difference on a random input in float64; None if not verified.
        name: Where the new operator is registered; empty before it is applied.
        cost: What the cost function gives, before and after.
        sized: Whether the sizes of values were known.
        basis: How it is known that the new operator is not slower, if its time was asked for.
    """

    place: str
    operators: str
    result: str
    multiply_adds: tuple[float, float]
    counts: tuple[int, int]
    error: float | None = None
    name: str = ""
    cost: tuple[float, float] = (0.0, 0.0)
    sized: bool = False
    basis: str = ""


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
