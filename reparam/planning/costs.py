"""What operators cost: the numbers by which the planner decides."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, order=True)
class Cost:
    """What a cost function makes of some operators, and their number.

    Args:
        amount: What the cost function gives, summed up. For multiply-adds without example inputs
            that is in units of one output position of the value that is decided on.
        operators: Operators that do work; views and the identity do none.
        multiply_adds: Multiply-adds of convolutions and linear layers, whatever the cost function.
    """

    amount: float = 0.0
    operators: int = 0
    multiply_adds: float = field(default=0.0, compare=False)

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.amount + other.amount,
            self.operators + other.operators,
            self.multiply_adds + other.multiply_adds,
        )

    def __sub__(self, other: Cost) -> Cost:
        return Cost(
            self.amount - other.amount,
            self.operators - other.operators,
            self.multiply_adds - other.multiply_adds,
        )

    def times(self, factor: float) -> Cost:
        """The same operators at another number of positions."""
        return Cost(self.amount * factor, self.operators, self.multiply_adds * factor)

    @property
    def loses(self) -> bool:
        """Whether a difference of two costs is a loss in one of its numbers."""
        return self.amount < 0 or self.operators < 0

    @property
    def saves(self) -> bool:
        """Whether a difference of two costs is a gain in one of its numbers and no loss."""
        return not self.loses and (self.amount > 0 or self.operators > 0)


NOTHING = Cost()

MULTIPLY_ADDS = "multiply-adds"
