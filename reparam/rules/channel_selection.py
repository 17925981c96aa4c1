r"""Channels side by side, parts of them, and channels in another order.

v = [x, y] along the channels        v[i] = x[index[i]]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from reparam.algebra import AffineConv, AffineStack
from reparam.errors import Refusal
from reparam.rules.registry import register_rule, spellings
from reparam.rules.steps import UNKNOWN_RANK, Extent, Selecting, unpacked

aten = torch.ops.aten

Parts = Sequence[Sequence[int]]

_BATCH = Refusal("values side by side, or a part of them, along the batch")

_UNKNOWN = Refusal("its axis or its sizes are known only at run time")


def _channel_axis(x: Any, dim: Any) -> int | Refusal:
    """The axis that an operator works along, counted from the end."""
    rank = x.rank if isinstance(x, AffineConv) else None
    if not isinstance(dim, int):
        return _UNKNOWN
    if rank is None:
        return dim if dim < 0 else UNKNOWN_RANK
    return _BATCH if dim % rank == 0 else dim % rank - rank


@register_rule(*spellings("cat"), *spellings("concat", "torch aten"), torch.concatenate)
def concatenate(tensors: Any, dim: Any = 0) -> AffineConv | AffineStack | Refusal:
    """Values side by side along the channels."""
    if not isinstance(tensors, Sequence) or not tensors:
        return _UNKNOWN
    parts = tuple(part for part in tensors if isinstance(part, AffineConv))
    if len(parts) < len(tensors):
        return Refusal("a constant in a concatenation")
    if len(parts) == 1:
        return parts[0]
    ranked = next((part for part in parts if part.rank is not None), parts[0])
    axis = _channel_axis(ranked, dim)
    return axis if isinstance(axis, Refusal) else AffineStack(parts, axis)


@register_rule(torch.hstack)
def stack_horizontally(tensors: Any) -> AffineConv | AffineStack | Refusal:
    """Values side by side along the second axis, or the only one."""
    ranks = {part.rank for part in tensors if isinstance(part, AffineConv)}
    return UNKNOWN_RANK if ranks <= {None, 1} else concatenate(tensors, 1)


def _selecting(
    x: Any,
    dim: Any,
    parts: Callable[[int], Parts],
    *,
    single: bool = True,
    by_number: bool = False,
) -> Selecting | Refusal:
    axis = _channel_axis(x, dim)
    return axis if isinstance(axis, Refusal) else Selecting(axis, parts, single, by_number)


def _pieces(channels: int, sizes: Sequence[int]) -> Parts:
    """Neighbouring parts of given sizes."""
    ends = [min(end, channels) for end in accumulate(sizes, initial=0)]
    return [range(start, end) for start, end in pairwise(ends)]


@register_rule(*spellings("chunk"))
def chunk(input: Any, chunks: Any, dim: Any = 0) -> Selecting | Refusal:
    """Parts of equal size, the last one smaller perhaps."""
    if not isinstance(chunks, int):
        return _UNKNOWN
    return _selecting(
        input, dim, lambda channels: _split(channels, -(-channels // chunks)), single=False
    )


def _split(channels: int, size: int) -> Parts:
    return _pieces(channels, [size] * -(-channels // size))


@register_rule(*spellings("split", "Tensor torch aten"), aten.split_with_sizes)
def split(input: Any, split_size: Any, dim: Any = 0) -> Selecting | Refusal:
    """Parts of one size, or of given sizes."""
    sizes = split_size if isinstance(split_size, Sequence) else (split_size,)
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return _UNKNOWN
    parts = _split if isinstance(split_size, int) else _pieces
    return _selecting(input, dim, lambda channels: parts(channels, split_size), single=False)


@register_rule(*spellings("tensor_split"))
def tensor_split(input: Any, indices_or_sections: Any, dim: Any = 0) -> Selecting | Refusal:
    """Parts of nearly equal size, the first ones larger, or parts that begin at given channels."""
    at = indices_or_sections
    if isinstance(at, Sequence) and all(isinstance(start, int) for start in at):

        def parts(channels: int) -> Parts:
            return [range(channels)[a:b] for a, b in pairwise((0, *at, channels))]
    elif isinstance(at, int):

        def parts(channels: int) -> Parts:
            size, larger = divmod(channels, at)
            return _pieces(channels, [size + (index < larger) for index in range(at)])
    else:
        return _UNKNOWN
    return _selecting(input, dim, parts, single=False)


@register_rule(*spellings("narrow"))
def narrow(input: Any, dim: Any, start: Any, length: Any) -> Selecting | Refusal:
    """Some neighbouring channels."""
    if not isinstance(start, int) or not isinstance(length, int):
        return _UNKNOWN
    return _selecting(
        input, dim, lambda channels: [range(start % channels, start % channels + length)]
    )


@register_rule(aten.slice)
def channel_slice(
    input: Any, dim: Any = 0, start: Any = None, end: Any = None, step: Any = 1
) -> Any:
    """Some channels at equal distances, as ATen writes it."""
    if not all(isinstance(bound, int | None) for bound in (start, end, step)):
        return _UNKNOWN
    return _selecting(input, dim, lambda channels: [range(channels)[start:end:step]])


@register_rule(*spellings("index_select"))
def index_select(input: Any, dim: Any, index: Any) -> Selecting | Refusal:
    """Channels by their numbers."""
    if not isinstance(index, Tensor) or index.dim() > 1:
        return _UNKNOWN
    return _selecting(input, dim, lambda channels: [index.flatten().tolist()], by_number=True)


@register_rule(aten.index)
def index_by_tensors(input: Any, indices: Any) -> Any:
    """Channels by their numbers, as ATen writes it."""
    one = isinstance(indices, Sequence) and len(indices) == 2 and indices[0] is None
    if not one or not isinstance(indices[1], Tensor) or indices[1].dim() != 1:
        return NotImplemented
    if indices[1].dtype in (torch.bool, torch.uint8):
        return Refusal("a mask of the channels")
    return index_select(input, 1, indices[1])


@register_rule(*spellings("flip"))
def flip(input: Any, *dims: Any) -> Any:
    """Channels in the opposite order."""
    axes = unpacked(dims)
    if len(axes) != 1:
        return NotImplemented
    return _selecting(input, axes[0], lambda channels: [range(channels)[::-1]], by_number=True)


@register_rule(*spellings("fliplr"))
def flip_second_axis(input: Any) -> Any:
    """Channels, which are the second axis, in the opposite order."""
    return flip(input, 1)


def _along_one_axis(input: Any, sizes: Sequence[Any], kept: Callable[[int, Any], bool]) -> Any:
    """The axis, from the end, and the size of the only entry that changes a value; else None."""
    rank = input.rank if isinstance(input, AffineConv) else None
    if rank is None or len(sizes) != rank:
        return None
    changed = [axis for axis in range(-rank, 0) if not kept(axis, sizes[axis])]
    if len(changed) != 1 or changed[0] == -rank or type(sizes[changed[0]]) is not int:
        return None
    return changed[0], sizes[changed[0]]


@register_rule(*spellings("repeat", "Tensor aten"), torch.tile, torch.Tensor.tile)
def repeat(input: Any, *sizes: Any) -> Any:
    """All channels, and all of them again."""
    place = _along_one_axis(input, unpacked(sizes), lambda axis, size: bool(size == 1))
    if place is None:
        return NotImplemented
    axis, times = place
    return _selecting(input, axis, lambda channels: [[*range(channels)] * times])


@register_rule(*spellings("repeat_interleave", "torch Tensor"))
def repeat_each(input: Any, repeats: Any, dim: Any = None, *, output_size: Any = None) -> Any:
    """Every channel several times in a row."""
    if not isinstance(repeats, int) or not isinstance(dim, int):
        return NotImplemented
    return _selecting(
        input, dim, lambda channels: [[at for at in range(channels) for _ in range(repeats)]]
    )


@register_rule(*spellings("expand", "Tensor aten"))
def expand(input: Any, *sizes: Any, implicit: Any = False) -> Any:
    """One channel, several times."""

    def kept(axis: int, size: Any) -> bool:
        return bool(size == -1 or size == Extent((axis,)))

    place = _along_one_axis(input, unpacked(sizes), kept)
    if place is None:
        return NotImplemented
    axis, size = place

    def parts(channels: int) -> Parts:
        return [[0] * size if channels == 1 else range(channels)]

    return _selecting(input, axis, parts)


@register_rule(*spellings("channel_shuffle"))
def channel_shuffle(input: Any, groups: Any) -> Selecting | Refusal:
    """Channels in groups, read across the groups (ShuffleNet, arXiv 1707.01083, section 3.1)."""
    if not isinstance(groups, int):
        return _UNKNOWN

    def across(channels: int) -> Parts:
        distance = channels // groups
        return [[at for start in range(distance) for at in range(start, channels, distance)]]

    return _selecting(input, 1, across)


@register_rule(nn.ChannelShuffle)
def channel_shuffle_module(module: nn.ChannelShuffle, x: AffineConv) -> Selecting | Refusal:
    """The channels as groups, read across the groups."""
    return channel_shuffle(x, module.groups)
