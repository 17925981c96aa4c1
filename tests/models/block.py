"""What a test needs to know of one block: how it is made, and what must be left of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from tests.support.counting import OperatorCounts

Shape = tuple[int, ...]

NOTHING = OperatorCounts()
ONE_CONVOLUTION = OperatorCounts(convolutions=1)
ONE_LINEAR = OperatorCounts(linears=1)


@dataclass(frozen=True)
class Refused:
    """A row that the report must have.

    Args:
        place: Where in the block.
        reason: Words of the reason.
    """

    place: str
    reason: str


@dataclass(frozen=True)
class Block:
    """A block, and what it must collapse to.

    Args:
        name: What its authors call it, and in which form.
        build: Makes it.
        shapes: The shapes of the inputs that it is tried on.
        kernels: Of the weights of the convolutions and linear layers that must be left, in the
            order in which they run; None where that is not decided.
        left: The other operators that must be left.
        by_hand: What the authors' own conversion leaves, if they have one.
        refused: What the report must say about what stays.
        missed: Why it does not collapse yet; empty if it does.
    """

    name: str
    build: Callable[[], nn.Module]
    shapes: tuple[Shape, ...]
    kernels: tuple[Shape, ...] | None
    left: OperatorCounts = NOTHING
    by_hand: OperatorCounts | None = None
    refused: tuple[Refused, ...] = ()
    missed: str = ""

    def __str__(self) -> str:
        return self.name


def images(channels: int) -> tuple[Shape, ...]:
    """Shapes of images: even, odd, and smaller than most kernels."""
    return (2, channels, 8, 10), (1, channels, 7, 13), (3, channels, 2, 5)


def tokens(channels: int) -> tuple[Shape, ...]:
    """Shapes of sequences, their channels last."""
    return (2, 6, channels), (1, 13, channels)


def features(channels: int) -> tuple[Shape, ...]:
    """Shapes of pooled features."""
    return (2, channels), (5, channels)
