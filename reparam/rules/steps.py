"""What a rule may return besides a form: what an operator does to the forms that reach it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from reparam.algebra import Affine, AffineConv, AffineStack, Norm
from reparam.errors import Refusal


@dataclass(frozen=True)
class Spread:
    """Where the channels of a value lie in the operand that was reshaped.

    Entry c of the operand's axis belongs to channel ``(c // run) % channels``. That is so for every
    position if runs of all channels fill the axis without a rest.

    Args:
        axis: The operand's axis, counted from the end.
        size: Its size.
        run: How many neighbours share a channel.
    """

    axis: int
    size: int
    run: int


@dataclass(frozen=True)
class Commuting:
    """What a rule returns for an operator that any affine map of the channels may cross.

    Views are the common case; pooling to a fixed size and interpolation are others. The operator
    stays where it is; a scale, a shift or a mixing of channels after it may move before it.

    Args:
        input_axis: From the channel axis of the value and its number of channels to the channel
            axis of the operand, axes counted from the end; a Refusal where the channels cannot be
            told apart.
        scales_only: Whether only a scale and a shift may cross: the operator names the number of
            channels, or mixing the channels on its other side would cost more or less.
        copies: Whether the value is the operand itself, in another place of memory.
        constants: Whether a constant may cross too, not only a factor: not where zeros are padded.
        refusal: Why the operator is no convolution itself, where that is not plain.
        runs: From the channel axis of the value to the axes of the operand along which a run of
            neighbours may share a channel of the value, each with the length of the run: a split
            of channels into several axes, some of which may have joined others.
        size: From an axis of the operand to its size, where known; the lifting tells it.
    """

    input_axis: Callable[[int, int | None], int | Refusal]
    scales_only: bool = False
    copies: bool = False
    constants: bool = True
    refusal: Refusal | None = None
    runs: Callable[[int], Sequence[tuple[int, int]]] | None = None
    size: Callable[[int], int | None] | None = None

    def spread(self, axis: int, channels: int | None) -> Spread | None:
        """Where the channels of a value lie in the operand, if that is known."""
        if self.runs is None or self.size is None or not channels:
            return None
        for before, run in self.runs(axis):
            size = self.size(before)
            if size and size % (run * channels) == 0:
                return Spread(before, size, run)
        return None


@dataclass(frozen=True, eq=False)
class Normalized:
    """What a rule returns for a norm by statistics of its input, which no form describes.

    Args:
        ending: The scale and the shift that it ends with, over what it reads.
        norm: The norm, which can have others.
    """

    ending: AffineConv
    norm: Norm


@dataclass(frozen=True)
class Unscalable:
    """What a rule returns for a norm by statistics of its input with a weight that stays there.

    Args:
        refusal: Why no other weight and bias can be in the place of its own.
    """

    refusal: Refusal


@dataclass(frozen=True)
class Stacked:
    """What a rule returns for branches stacked along a new axis, to be summed later."""

    branches: tuple[AffineConv, ...]
    dim: int


@dataclass(frozen=True)
class Selecting:
    """What a rule returns for an operator that takes parts of the channels.

    Args:
        axis: The channel axis, counted from the end.
        parts: From the number of channels to the numbers of those in each part.
        single: Whether there is one result and no tuple of them.
        by_number: Whether it names channels one by one, as code does that is made for so many.
    """

    axis: int
    parts: Callable[[int], Sequence[Sequence[int]]]
    single: bool = True
    by_number: bool = False


@dataclass(frozen=True)
class Several:
    """What a rule returns for an operator with several results, which are read one by one."""

    results: tuple[Affine | Normalized | Unscalable | Refusal, ...]


@dataclass(frozen=True)
class Unknown:
    """What a rule sees in place of a value that only a run of the model tells."""


@dataclass(frozen=True)
class Extent:
    """What a rule sees in place of the size of one axis, from the end, of its first operand.

    Or of the product of the sizes of several axes, which are in order.
    """

    axes: tuple[int, ...]


UNKNOWN = Unknown()

UNKNOWN_RANK = Refusal("the number of axes of its input is not known; pass example_inputs")

Step = Affine | AffineStack | Commuting | Normalized | Unscalable | Stacked | Several | Refusal


def unpacked(values: Sequence[Any]) -> Sequence[Any]:
    """The sizes, the axes or the operands of a call: ``f(x, 1, 2)`` or ``f(x, (1, 2))``."""
    return values[0] if len(values) == 1 and isinstance(values[0], Sequence) else values
