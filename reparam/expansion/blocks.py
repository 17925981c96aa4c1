"""Blocks as data: which branches stand beside a layer, over which kernels, in which order.

A branch is a sequence of steps. The layer itself stays the main branch; its kernel becomes what is
left of it without the others, so that the sum is what it was::

    K = K_main + K_1 + ... + K_n,    K_main = K - (K_1 + ... + K_n)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reparam.errors import ReparamError

Size = int | tuple[int | None, ...] | None


@dataclass(frozen=True)
class Kernel:
    """A convolution; of a linear layer, a linear layer.

    Args:
        size: Its kernel size, for all axes or one per axis, in the middle of the layer's own; None
            is the layer's own.
        channels: How many channels it makes. A float is a multiple of the layer's input channels;
            None means those that the next step, or in the end the layer, is to have.
        zero: Whether it starts at zero, as the second of LoRA's layers does.
    """

    size: Size = None
    channels: int | float | None = None
    zero: bool = False


@dataclass(frozen=True)
class Pool:
    """An average pool.

    Args:
        size: Its kernel size; None is the layer's own.
    """

    size: Size = None


@dataclass(frozen=True)
class Scale:
    """One factor per channel.

    Args:
        start: What it starts at.
        trained: Whether it is a parameter, and no constant.
    """

    start: float = 1.0
    trained: bool = True


@dataclass(frozen=True)
class Skip:
    """The input itself, at the layer's stride of 1 and with as many channels."""


Step = Kernel | Pool | Scale | Skip


@dataclass(frozen=True, init=False)
class Block:
    """The branches that `reparam.expand` gives a layer besides the layer itself.

    A sum of branches of one layer each that are not scaled trains like the layer alone, but for its
    initialisation and weight decay (OREPA, arXiv 2204.00826, section 3): scales, norms, and layers
    in a row make the difference.

    Args:
        name: How the report calls it.
        branches: For each branch its steps.

    Raises:
        ReparamError: If a branch is empty, or a step none.

    Examples:
        >>> from reparam import blocks
        >>> wide = [blocks.Kernel(1, channels=2.0), blocks.Kernel()]
        >>> mine = blocks.Block("mine", [blocks.Kernel(1), blocks.Scale()], wide)
        >>> len(mine.branches)
        2
    """

    name: str
    branches: tuple[tuple[Step, ...], ...]

    def __init__(self, name: str, *branches: Sequence[Step]) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "branches", tuple(map(_checked, branches)))
        if not branches:
            raise ReparamError(f"the block {name!r} has no branches: name their steps")


def _checked(branch: Any) -> tuple[Step, ...]:
    steps: tuple[Any, ...] = tuple(branch) if isinstance(branch, Sequence) else (branch,)
    for step in steps:
        if not isinstance(step, Step):
            raise ReparamError(
                f"a branch is a sequence of Kernel, Pool, Scale and Skip, not {step!r}"
            )
    if not steps:
        raise ReparamError("a branch without steps: a Skip() is the input itself")
    return steps


def rep_vgg() -> Block:
    """A 1x1 convolution and the input itself (RepVGG, arXiv 2101.03697, section 3)."""
    return Block("RepVGG", [Kernel(1)], [Skip()])


def acnet() -> Block:
    """A row and a column of the kernel (ACNet, arXiv 1908.03930, section 3)."""
    return Block("ACNet", [Kernel((1, None))], [Kernel((None, 1))])


def dbb() -> Block:
    """1x1, 1x1 before the kernel, and 1x1 before a pool (DBB, arXiv 2103.13425, section 3)."""
    return Block("DBB", [Kernel(1)], [Kernel(1, 1.0), Kernel()], [Kernel(1), Pool()])


def mobile_one(copies: int = 4) -> Block:
    """Scaled copies of the kernel and of a 1x1 (MobileOne, arXiv 2206.04040, section 3).

    Each copy has a factor per channel of its own, as the paper's has in its norm: without any, the
    copies would train like one.

    Args:
        copies: How many kernels there are, the layer's own counted.
    """
    scaled: list[list[Step]] = [[Kernel(), Scale()] for _ in range(copies - 1)]
    return Block("MobileOne", *scaled, [Kernel(1), Scale()])


def rep_lk(size: int = 5) -> Block:
    """A small kernel beside a large one (RepLKNet, arXiv 2203.06717, section 3).

    Args:
        size: Of the small kernel.
    """
    return Block("RepLKNet", [Kernel(size)])


def expand_net(ratio: float = 4.0) -> Block:
    """1x1, the kernel and 1x1 in a row, with more channels between (arXiv 1811.10495, section 3).

    Args:
        ratio: The channels between, as a multiple of the layer's input channels.
    """
    return Block("ExpandNet", [Kernel(1, ratio), Kernel(None, ratio), Kernel(1)])


def lora(rank: int = 4) -> Block:
    """A change of low rank that starts at zero (LoRA, arXiv 2106.09685, section 4.1).

    Args:
        rank: The channels between its two layers.
    """
    return Block("LoRA", [Kernel(None, rank), Kernel(1, zero=True)])


def csla() -> Block:
    """Constant scales of a kernel, a 1x1 and the input (arXiv 2205.15242, section 3).

    One scale per channel and branch, not trained: so `reparam.gradient_multipliers` has a factor
    for each weight.
    """
    return Block(
        "CSLA", [Kernel(), Scale(trained=False)], [Kernel(1), Scale(trained=False)], [Skip()]
    )
