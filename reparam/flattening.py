"""Flattened channels: which axes an operator merges with them."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import fx, nn

from reparam.effects import operator_name
from reparam.extents import Extents
from reparam.modules import fetch
from reparam.parts import Part
from reparam.rules import Extent


def flattens(node: fx.Node, operand: fx.Node, axis: int, part: Part) -> bool:
    """Whether a node makes one axis of the channels and all axes after them.

    Args:
        node: The node.
        operand: The value that it flattens.
        axis: The axis of the operand's channels, counted from the end.
        part: The part whose graph it is in.
    """
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
    extents = Extents(part.steps, facts)
    return all(
        isinstance(size, fx.Node) and extents.of(size, node) == Extent(at - rank)
        for at, size in enumerate(sizes[:-1])
    )


def _merges(bounds: tuple[Any, Any], first: int, rank: int) -> bool:
    start, end = bounds
    known = isinstance(start, int) and isinstance(end, int)
    return known and start % rank == first and end % rank == rank - 1
