"""What operators cost: the numbers by which the planner decides."""

from __future__ import annotations

from dataclasses import dataclass

from reparam.affine import AffineConv
from reparam.errors import Refusal
from reparam.geometry import Axis


@dataclass(frozen=True, order=True)
class Cost:
    """Multiply-adds of convolutions and linear layers, and operators of any kind.

    Args:
        multiply_adds: In units of one output position of the value that is decided on, or, with
            example inputs, for these.
        operators: Operators that do work; views and the identity do none.
    """

    multiply_adds: float = 0.0
    operators: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.multiply_adds + other.multiply_adds, self.operators + other.operators)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.multiply_adds - other.multiply_adds, self.operators - other.operators)

    def times(self, factor: float) -> Cost:
        """The same operators at another number of positions."""
        return Cost(self.multiply_adds * factor, self.operators)

    @property
    def saves(self) -> bool:
        """Whether a difference of two costs is a gain in one number and a loss in neither."""
        return (
            self.multiply_adds >= 0
            and self.operators >= 0
            and (self.multiply_adds > 0 or self.operators > 0)
        )


NOTHING = Cost()


def form_cost(form: AffineConv) -> Cost:
    """What a form costs per position once it is an operator."""
    if form.identity:
        return NOTHING
    return Cost(form.multiply_adds, 1 + len(explicit_padding(form)))


def explicit_padding(form: AffineConv) -> list[tuple[int, ...]]:
    """The paddings, as ``F.pad`` takes them, that a convolution module cannot do by itself."""
    axes = form.axes or ()
    if form.transposed or pads_same(form):
        return []
    if all(axis.before == axis.after >= 0 for axis in axes):
        return []
    sides = [side for axis in reversed(axes) for side in (axis.before, axis.after)]
    if all(axis.mode == "zeros" for axis in axes if axis.padded) or min(sides) >= 0:
        return [tuple(sides)]
    # Only zeros can be padded and cropped in one go.
    return [tuple(max(side, 0) for side in sides), tuple(min(side, 0) for side in sides)]


def pads_same(form: AffineConv) -> bool:
    """Whether torch's ``padding="same"`` says it."""
    return all(
        axis.stride == 1
        and axis.before == axis.reach // 2
        and axis.after == axis.reach - axis.reach // 2
        for axis in form.axes or ()
    )


def unsupported(form: AffineConv) -> Refusal | None:
    """Why no torch module computes a form, if none does."""
    axes = form.axes or ()
    if form.columns is not None:
        return Refusal("it reads a part of the channels, or in another order")
    if len(axes) > 3:
        return Refusal(f"torch has no convolution over {len(axes)} axes")
    if any(axis.mode == "value" and axis.padded for axis in axes):
        return Refusal("padding with a value other than zero is no convolution")
    if form.transposed and not all(
        axis.before == axis.after >= 0
        and 0 <= axis.output_padding < max(axis.stride, axis.dilation)
        for axis in axes
    ):
        return Refusal("torch has no transposed convolution of this size")
    return None


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
