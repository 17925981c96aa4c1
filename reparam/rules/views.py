"""Operators that any affine map of the channels may cross: views, global pools, interpolation.

They stay where they are. What matters is where they move the channel axis, counted from the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import nn

from reparam.algebra import Affine, AffineConv
from reparam.errors import Refusal
from reparam.rules.elementwise import total
from reparam.rules.registry import register_rule, spellings
from reparam.rules.steps import UNKNOWN_RANK, Commuting, Extent, Stacked, unpacked

Step = Commuting | Refusal

_MERGED = Refusal("its channels are merged with another axis")

_UNKNOWN_SIZES = Refusal("the axes of its result are known only at run time")


def _commuting(
    input: Any, input_axis: Callable[[int, int | None], int | Refusal], *, scales_only: bool = False
) -> Step:
    if not isinstance(input, AffineConv):
        return Refusal("its input is a constant or not a tensor")
    return Commuting(input_axis, scales_only)


@register_rule(*spellings("flatten"))
def flatten(input: Any, start_dim: Any = 0, end_dim: Any = -1) -> Step:
    """Neighbouring axes become one."""
    if not isinstance(input, AffineConv):
        return _UNKNOWN_SIZES
    if not isinstance(start_dim, int) or not isinstance(end_dim, int):
        return _UNKNOWN_SIZES
    rank, ones = input.rank, input.ones
    if rank is None:
        return UNKNOWN_RANK
    first, last = start_dim % rank, end_dim % rank
    removed = last - first

    def input_axis(axis: int, _: int | None) -> int | Refusal:
        position = rank - removed + axis
        merged = removed and position == first
        if merged and last == rank - 1 and ones >= removed:
            return first - rank  # only axes of size 1 were merged into the channels
        if position < 0 or merged:
            return _MERGED
        return axis if position > first else axis - removed

    return Commuting(input_axis)


@register_rule(nn.Flatten)
def flatten_module(module: nn.Flatten, x: AffineConv) -> Step:
    """Neighbouring axes become one."""
    return flatten(x, module.start_dim, module.end_dim)


def _permuted(x: Any, order: Sequence[Any]) -> Step:
    if not all(isinstance(axis, int) for axis in order):
        return _UNKNOWN_SIZES
    rank = len(order)

    def input_axis(axis: int, _: int | None) -> int | Refusal:
        return order[axis + rank] % rank - rank if -rank <= axis else _MERGED

    return _commuting(x, input_axis)


@register_rule(*spellings("permute"))
def permute(input: Any, *dims: Any) -> Step:
    """Axes in another order."""
    return _permuted(input, unpacked(dims))


@register_rule(*spellings("transpose"), *spellings("swapaxes swapdims", "torch Tensor"))
def transpose(input: Any, dim0: Any, dim1: Any) -> Step:
    """Two axes change places."""
    if not isinstance(dim0, int) or not isinstance(dim1, int):
        return _UNKNOWN_SIZES
    if not isinstance(input, AffineConv):
        return Refusal("its input is a constant or not a tensor")
    rank = input.rank
    if rank is None and (dim0 >= 0 or dim1 >= 0):
        return UNKNOWN_RANK
    first, second = (dim if rank is None else dim % rank - rank for dim in (dim0, dim1))
    swapped = {first: second, second: first}
    return _commuting(input, lambda axis, channels: swapped.get(axis, axis))


@register_rule(*spellings("movedim moveaxis", "torch Tensor"))
def move_axes(input: Any, source: Any, destination: Any) -> Step:
    """Some axes move, the others keep their order."""
    sources = source if isinstance(source, Sequence) else (source,)
    destinations = destination if isinstance(destination, Sequence) else (destination,)
    if not all(isinstance(axis, int) for axis in (*sources, *destinations)):
        return _UNKNOWN_SIZES
    rank = input.rank if isinstance(input, AffineConv) else None
    if rank is None:
        return UNKNOWN_RANK
    moved = {to % rank: axis % rank for to, axis in zip(destinations, sources, strict=True)}
    others = iter(axis for axis in range(rank) if axis not in moved.values())
    return _permuted(input, [moved[to] if to in moved else next(others) for to in range(rank)])


@register_rule(*spellings("roll"))
def roll(input: Any, shifts: Any, dims: Any = None) -> Step:
    """Positions moved in a circle, along axes that are not those of the channels."""
    axes = dims if isinstance(dims, Sequence) else (dims,)
    if dims is None or not axes:
        return Refusal("all axes are rolled as one")
    if not isinstance(input, AffineConv) or not all(isinstance(axis, int) for axis in axes):
        return _UNKNOWN_SIZES
    rank = input.rank
    if rank is None and max(axes) >= 0:
        return UNKNOWN_RANK
    moved = {axis if rank is None else axis % rank - rank for axis in axes}

    def input_axis(axis: int, _: int | None) -> int | Refusal:
        return Refusal("its channels move in a circle") if axis in moved else axis

    return _commuting(input, input_axis)


@register_rule(*spellings("reshape view reshape_as view_as"))
def reshape(input: Any, *shape: Any) -> Step:
    """Axes of new sizes; those of the same size at either end are the same axes.

    The entries after an axis make a block, which both values have in the same order. If a block of
    the value is ``run`` blocks of the operand, then so many neighbours share a channel::

        channel of the value = (position // block) % channels
                             = (entry of the operand's axis // run) % channels
    """
    if not isinstance(input, AffineConv):
        return Refusal("its input is a constant or not a tensor")
    sizes = unpacked(shape)
    rank = input.rank

    def input_axis(axis: int, channels: int | None) -> int | Refusal:
        def same(position: int, operand: int) -> bool:
            if position == axis and isinstance(sizes[position], int):
                return bool(sizes[position] == channels)
            return bool(sizes[position] == Extent((operand,)))

        if -len(sizes) <= axis < 0:
            if all(same(position, position) for position in range(axis, 0)):
                return axis
            before = range(-len(sizes), axis + 1)
            if rank is not None and all(same(at, at + len(sizes) - rank) for at in before):
                return axis + len(sizes) - rank
        return Refusal("its channels cannot be followed through a reshape")

    def runs(axis: int) -> list[tuple[int, int]]:
        block = _block(sizes, axis, input.ones)
        if block is None or rank is None:
            return []
        run, unknown = block
        return [
            (before, run)
            for before in range(-1, -rank - 1, -1)
            if sorted(range(before + 1, -input.ones)) == unknown
        ]

    return Commuting(input_axis, scales_only=True, runs=runs)


def _block(sizes: Sequence[Any], axis: int, ones: int) -> tuple[int, list[int]] | None:
    """How many entries lie after an axis: a number, times the sizes of some axes of the operand."""
    if not -len(sizes) <= axis < 0:
        return None
    number = 1
    unknown: list[int] = []
    for size in sizes[axis + 1 :] if axis < -1 else ():
        if isinstance(size, Extent):
            unknown.extend(axis for axis in size.axes if axis < -ones)
        elif isinstance(size, int) and size > 0:
            number *= size
        else:
            return None
    return number, sorted(unknown)


@register_rule(*spellings("unflatten", "torch Tensor"))
def unflatten(input: Any, dim: Any, sizes: Any) -> Step:
    """One axis becomes several."""
    if not isinstance(dim, int) or not isinstance(sizes, Sequence):
        return _UNKNOWN_SIZES
    rank = input.rank if isinstance(input, AffineConv) else None
    if rank is None and dim >= 0:
        return UNKNOWN_RANK
    split = dim if rank is None else dim % rank - rank

    def input_axis(axis: int, _: int | None) -> int | Refusal:
        if axis > split:
            return axis
        before = axis + len(sizes) - 1
        return before if before < split else Refusal("its channels are split into several axes")

    return _commuting(input, input_axis)


@register_rule(nn.Unflatten)
def unflatten_module(module: nn.Unflatten, x: AffineConv) -> Step:
    """One axis becomes several."""
    return unflatten(x, module.dim, module.unflattened_size)


_ADAPTIVE_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


@register_rule(*_ADAPTIVE_POOLS, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
def spatial_module(module: nn.Module, x: AffineConv) -> Step:
    """A pool or an interpolation over the spatial axes, with weights that sum to one."""
    for axes, pool in enumerate(_ADAPTIVE_POOLS, start=1):
        if isinstance(module, pool):
            return spatial(x, axes)
    if module.mode == "bicubic":
        return Refusal("bicubic interpolation")
    return spatial(x, None)


def spatial(
    x: Any, axes: int | None, *, constants: bool = True, refusal: Refusal | None = None
) -> Step:
    """A map of the last axes that leaves the channels before them alone; None means all after them.

    Constants cross it where its weights sum to one at every position.
    """
    if not isinstance(x, AffineConv):
        return Refusal("its input is a constant or not a tensor")
    if axes is None:
        if x.rank is None:
            return UNKNOWN_RANK
        axes = x.rank - 2

    def input_axis(axis: int, _: int | None) -> int | Refusal:
        return axis if axis < -axes else _MERGED

    return Commuting(input_axis, scales_only=True, constants=constants, refusal=refusal)


@register_rule(*spellings("adaptive_avg_pool1d", "F"))
def adaptive_pool_1d(input: Any, output_size: Any) -> Step:
    """An average pool to a fixed size."""
    return spatial(input, 1)


@register_rule(*spellings("adaptive_avg_pool2d"))
def adaptive_pool_2d(input: Any, output_size: Any) -> Step:
    """An average pool to a fixed size."""
    return spatial(input, 2)


@register_rule(*spellings("adaptive_avg_pool3d"))
def adaptive_pool_3d(input: Any, output_size: Any) -> Step:
    """An average pool to a fixed size."""
    return spatial(input, 3)


@register_rule(F.interpolate)
def interpolate(
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: Any = "nearest",
    align_corners: Any = None,
    recompute_scale_factor: Any = None,
    antialias: Any = False,
) -> Step:
    """An interpolation, whose weights sum to one."""
    if mode == "bicubic" or antialias is not False:
        return Refusal("bicubic or antialiased interpolation")
    return spatial(input, None)


@register_rule(*spellings("mean"))
def mean(input: Any, dim: Any = None, keepdim: Any = False, *, dtype: Any = None) -> Affine | Step:
    """The mean over stacked branches, or over axes that a map of the channels may cross."""
    if isinstance(input, Stacked):
        result = total(input, dim, keepdim, dtype=dtype)
        return result if isinstance(result, Refusal) else result.scale(1 / len(input.branches))
    dims = (dim,) if isinstance(dim, int) else dim
    if not isinstance(input, AffineConv) or not isinstance(dims, Sequence) or dtype is not None:
        return Refusal("a mean over axes that are known only at run time")
    rank = input.rank
    if rank is None:
        return UNKNOWN_RANK
    removed = {axis % rank for axis in dims}
    kept = [axis for axis in range(rank) if keepdim or axis not in removed]

    def input_axis(axis: int, _: int | None) -> int | Refusal:
        if axis < -len(kept) or kept[axis] in removed:
            return _MERGED
        return kept[axis] - rank

    return Commuting(input_axis, scales_only=True)


@register_rule(*spellings("contiguous clone"))
def copy(input: Any, *, memory_format: Any = None) -> Step:
    """The same numbers, perhaps in another place of memory; it stays, since a view may need it."""
    if not isinstance(input, AffineConv):
        return Refusal("a copy of a constant")
    return Commuting(lambda axis, channels: axis, copies=True)
