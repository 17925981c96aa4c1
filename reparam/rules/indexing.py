"""Axes of size one that come and go, and parts of a value.

A position is taken from every channel alike, so a map of the channels may act before or after it.
A slice along the spatial axes is a crop, with a stride where it skips positions.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reparam.algebra import AffineConv, Axis
from reparam.errors import Refusal
from reparam.rules.registry import register_rule, spellings
from reparam.rules.steps import UNKNOWN_RANK, Commuting, Selecting


def _regrouped(kept: Sequence[int | None], rank: int, *, scales_only: bool = False) -> Commuting:
    """A view whose axes are some of the operand's, or new ones of size one where ``kept`` is None.

    Only scales cross where positions are left out: mixing channels first would cost more.
    """

    def input_axis(axis: int, _: int | None) -> int | Refusal:
        at = kept[axis] if -len(kept) <= axis else None
        return Refusal("its channels lie along an axis of size one") if at is None else at - rank

    return Commuting(input_axis, scales_only)


@register_rule(*spellings("squeeze"))
def squeeze(input: Any, dim: Any = None) -> Commuting | Refusal:
    """Axes of size one go; only where a global pool tells that their size is one."""
    if not isinstance(input, AffineConv) or input.rank is None:
        return UNKNOWN_RANK
    dims = dim if isinstance(dim, Sequence) else (dim,)
    if not all(isinstance(axis, int) for axis in dims):
        return Refusal("which of its axes have size one is known only at run time")
    gone = {axis % input.rank for axis in dims}
    if any(axis < input.rank - input.ones for axis in gone):
        return Refusal("whether its axis has size one is known only at run time")
    return _regrouped([axis for axis in range(input.rank) if axis not in gone], input.rank)


@register_rule(*spellings("unsqueeze"))
def unsqueeze(input: Any, dim: Any) -> Commuting | Refusal:
    """A new axis of size one."""
    if not isinstance(input, AffineConv) or not isinstance(dim, int):
        return Refusal("its axis is known only at run time")
    if input.rank is None:
        return UNKNOWN_RANK
    kept: list[int | None] = list(range(input.rank))
    kept.insert(dim % (input.rank + 1), None)
    return _regrouped(kept, input.rank)


@register_rule(operator.getitem)
def index(input: Any, item: Any) -> Any:
    """Slices, positions and new axes, written as ``x[:, :, 0, 0]`` or ``x[..., 1:, None]``."""
    whole = slice(None)
    if not isinstance(input, AffineConv) or not isinstance(item, tuple):
        return NotImplemented  # an element of a tuple, or a part of the batch
    if len(item) > 1 and _picks(item):
        return _some_channels(input, item)
    kinds = {type(entry) for entry in item}
    if not kinds <= {int, slice, type(None), type(...)} or not kinds & {slice, type(...)}:
        return NotImplemented
    taken = sum(entry is not None and entry is not ... for entry in item)
    rank = input.rank
    if rank is None:
        return UNKNOWN_RANK
    entries = list(item) if ... in item else [*item, ...]
    at = entries.index(...)
    entries[at : at + 1] = [whole] * (rank - taken)
    kept: list[int | None] = []
    position = 0
    for entry in entries:
        if entry is None or entry == whole:
            kept.append(None if entry is None else position)
        elif not isinstance(entry, int) or position == 0:
            return _cropped(input, entries)
        position += entry is not None
    ones = range(rank - input.ones, rank)
    positions = set(range(rank)).difference(kept)
    return _regrouped(kept, rank, scales_only=not positions.issubset(ones))


def _picks(item: Sequence[Any]) -> bool:
    """Whether an index is about the channels alone: ``x[:, 2:]`` or ``x[:, numbers]``."""
    whole = slice(None)
    rest = all(entry is ... or (isinstance(entry, slice) and entry == whole) for entry in item[2:])
    first, picked = item[:2]
    channels = isinstance(picked, slice) and picked != whole
    numbers = isinstance(picked, list) or (isinstance(picked, Tensor) and picked.dim() == 1)
    return isinstance(first, slice) and first == whole and rest and (channels or numbers)


def _some_channels(x: AffineConv, item: Sequence[Any]) -> Selecting | Refusal:
    """Some of the channels, which are the second axis."""
    if x.rank is None:
        return UNKNOWN_RANK
    picked = item[1]
    if isinstance(picked, slice):
        bounds = picked.start, picked.stop, picked.step
        if not all(isinstance(bound, int | None) for bound in bounds):
            return Refusal("a slice that is known only at run time")
        return Selecting(1 - x.rank, lambda channels: [range(channels)[picked]])
    if isinstance(picked, Tensor) and picked.dtype in (torch.bool, torch.uint8):
        return Refusal("a mask of the channels")
    numbers = picked.tolist() if isinstance(picked, Tensor) else picked
    if not all(type(number) is int for number in numbers):
        return Refusal("an index that is no list of numbers")
    return Selecting(1 - x.rank, lambda channels: [numbers], by_number=True)


def _cropped(x: AffineConv, entries: Sequence[Any]) -> AffineConv | Refusal:
    """Slices of the spatial axes."""
    axes: list[Axis] = []
    for entry in entries[2:]:
        if not isinstance(entry, slice):
            return Refusal("a slice and a position, or a new axis, in one index")
        start, stop, step = entry.start or 0, entry.stop or 0, entry.step or 1
        if not all(isinstance(value, int) for value in (start, stop, step)):
            return Refusal("a slice that is known only at run time")
        if start < 0 or stop > 0 or step < 1 or entry.stop == 0:
            return Refusal("a slice whose size depends on the size of its input")
        axes.append(Axis(stride=step, before=-start, after=stop))
    if not axes or any(entry != slice(None) for entry in entries[:2]):
        return Refusal("a part of the channels or of the batch")
    return x.pad(axes)
