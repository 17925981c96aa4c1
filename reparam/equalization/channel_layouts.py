"""Channels that must share one scale: a union of them, and why some must keep the scale 1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import fx, nn

from reparam.analysis import Part
from reparam.capture import operator_name
from reparam.errors import Refusal
from reparam.modules import fetch
from reparam.rules import Extent

Channels = tuple[int, ...]
"""One number per channel; channels with numbers of one group share a scale."""


@dataclass(frozen=True)
class Layout:
    """Which channels a value holds, and where.

    Args:
        axis: The axis of the channels, counted from the end.
        channels: Its channels, in order.
        spread: Whether the axis holds several positions of each channel, those of the first channel
            first: it is flattened.
    """

    axis: int
    channels: Channels
    spread: bool = False


@dataclass(eq=False)
class ScaleGroups:
    """Disjoint groups of channels.

    Args:
        parents: For each channel another one of its group, or itself.
        fixed: For each group, by its first channel, why it keeps the scale 1.
    """

    parents: list[int] = field(default_factory=list)
    fixed: dict[int, Refusal] = field(default_factory=dict)

    def new(self, count: int) -> Channels:
        """Channels of groups of their own."""
        start = len(self.parents)
        self.parents.extend(range(start, start + count))
        return tuple(range(start, start + count))

    def find(self, channel: int) -> int:
        """The first channel of a channel's group."""
        parents = self.parents
        while (above := parents[channel]) != channel:
            parents[channel] = channel = parents[above]
        return channel

    def tie(self, one: Sequence[int], other: Sequence[int]) -> None:
        """Let channels share their scales, one by one."""
        for first, second in zip(one, other, strict=True):
            low, high = sorted((self.find(first), self.find(second)))
            if low != high:
                self.parents[high] = low
                if high in self.fixed:
                    self.fixed.setdefault(low, self.fixed.pop(high))

    def fix(self, channels: Iterable[int], reason: Refusal) -> None:
        """Let channels keep the scale 1."""
        for channel in channels:
            self.fixed.setdefault(self.find(channel), reason)


def flattens(node: fx.Node, operand: fx.Node, axis: int, part: Part) -> bool:
    """Whether a node makes one axis of its operand's axis of channels and all axes after it."""
    facts = part.facts
    module = fetch(facts.root, str(node.target)) if node.op == "call_module" else None
    name = operator_name(node) if module is None else type(module).__name__
    if name not in ("Flatten", "flatten", "view", "reshape"):
        return False
    before, after = facts.shapes.get(operand), facts.shapes.get(node)
    if before is not None and after is not None:
        return after == (*before[:axis], prod(before[axis:]))
    rank = facts.ranks.get(operand)
    if rank is None:
        return False
    first = rank + axis
    if isinstance(module, nn.Flatten):
        return _merges((module.start_dim, module.end_dim), first, rank)
    if name == "flatten":
        named = ("start_dim", "end_dim")
        given = dict(zip(named, node.args[1:], strict=False)) | dict(node.kwargs)
        return _merges((given.get("start_dim", 0), given.get("end_dim", -1)), first, rank)
    sizes: Any = node.args[1:]
    sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes
    if len(sizes) != first + 1 or sizes[-1] != -1:
        return False
    extents = part.extents
    return all(
        isinstance(size, fx.Node) and extents.of(size, node) == Extent((at - rank,))
        for at, size in enumerate(sizes[:-1])
    )


def _merges(bounds: tuple[Any, Any], first: int, rank: int) -> bool:
    start, end = bounds
    known = isinstance(start, int) and isinstance(end, int)
    return known and start % rank == first and end % rank == rank - 1
