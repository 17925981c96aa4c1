"""One channel that is taken out of a value and given its axis back: ``x[:, 2].unsqueeze(1)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from reparam.analysis.facts import Facts
from reparam.capture import torch_name
from reparam.rules import Selecting

_WHOLE = slice(None)


def single_channel(node: fx.Node, facts: Facts) -> tuple[fx.Node, Selecting] | None:
    """The value that one channel is taken from, and which, if a node gives it its axis back."""
    taken = node.args[0] if node.args else None
    rank = facts.ranks.get(taken) if isinstance(taken, fx.Node) else None
    if not isinstance(taken, fx.Node) or rank is None:
        return None
    base = taken.args[0] if taken.args else None
    picked = _taken(taken, rank + 1)
    if picked is None or not isinstance(base, fx.Node) or base in facts.sources:
        return None
    axis, channel = picked
    if axis < 1 or _new_axis(node, rank + 1) != axis:
        return None
    return base, Selecting(
        axis - rank - 1, lambda channels: [range(channels)[channel:][:1]], by_number=True
    )


def _taken(node: fx.Node, rank: int) -> tuple[int, int] | None:
    """The axis that a position is taken along, and the position, if that is all a node does."""
    name = torch_name(node)
    if name == "select" and len(node.args) == 3:
        axis, position = node.args[1:]
    elif name == "getitem" and isinstance(node.args[1], tuple):
        index: Sequence[Any] = node.args[1]
        axis, position = len(index) - 1, index[-1]
        if any(not isinstance(entry, slice) or entry != _WHOLE for entry in index[:-1]):
            return None
    else:
        return None
    if type(axis) is not int or type(position) is not int:
        return None
    return axis % rank, position


def _new_axis(node: fx.Node, rank: int) -> int | None:
    """Which axis of its value is one that a node adds, if that is all it does."""
    name = torch_name(node)
    if name == "unsqueeze":
        axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return axis % rank if type(axis) is int else None
    if name == "getitem" and isinstance(node.args[1], tuple):
        index: Sequence[Any] = node.args[1]
        before = index[: index.index(None)] if None in index else ()
        rest = [entry for entry in index if entry is not None]
        plain = all(isinstance(entry, slice) and entry == _WHOLE for entry in rest)
        return len(before) if plain and len(rest) == len(index) - 1 else None
    return None
