"""What operators cost: the numbers by which the planner decides."""

from __future__ import annotations

from dataclasses import dataclass, field

from reparam.algebra.geometry import Axis


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


def least_positions(axis: Axis, *, transposed: bool) -> float:
    """A lower bound, for any length, of the longer side's length over the other's along one axis.

    For a convolution that is the input's length over the output's, for a transposed one the
    output's over the input's.
    """
    stride = axis.stride
    excess = axis.transposed_excess if transposed else -axis.excess
    # The longer side has stride * (n - 1) + 1 + excess positions for n on the other one.
    if excess >= 0:
        return float(min(stride, 1 + excess))
    shortest = -(excess // stride) + 1  # the fewest that leave at least one position
    return min(float(stride), (stride * (shortest - 1) + 1 + excess) / shortest)


def most_positions(axis: Axis) -> float:
    """An upper bound, for any length, of a transposed convolution's output over its input.

    Along one axis n positions give stride * (n - 1) + 1 + excess.
    """
    return float(max(axis.stride, 1 + axis.transposed_excess))


MULTIPLY_ADDS = "multiply-adds"
