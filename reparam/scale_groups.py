"""Channels that must share one scale: a union of them, and why some must keep the scale 1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from reparam.errors import Refusal

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

    def why_fixed(self, channel: int) -> Refusal | None:
        """Why a channel keeps the scale 1; None if it is free."""
        return self.fixed.get(self.find(channel))
