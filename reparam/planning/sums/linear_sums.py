"""A linear layer over all positions of a value takes in the convolutions of it that are added.

At a known size a convolution is a linear layer, too (see `algebra.known_sizes`)::

    L(x in a row) + (K * x, in a row) = (L + T)(x in a row)

RepMLPNet (arXiv 2112.11081) trains such a pair. What is in a row is seen by reshapes, which neither
move entries nor leave any out: all views of one value have them in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import fx

from reparam.algebra import AffineConv, identity, over_positions, positions_after
from reparam.capture import Trait, traits
from reparam.errors import Refusal
from reparam.planning.appraiser import Appraiser
from reparam.planning.dominators import Candidate, Link
from reparam.planning.regions import Absorbed, Region, Rows
from reparam.planning.sums.regrouped_sums import is_sum


def linear_regions(nodes: Sequence[fx.Node], appraiser: Appraiser) -> Iterator[Region]:
    """The regions in which a linear layer takes in another term of a sum, where that gains."""
    for node in reversed(nodes):
        region = next((way for way in _ways(node, appraiser) if isinstance(way, Region)), None)
        if region is not None:
            yield region


def why_not_linear(nodes: Sequence[fx.Node], appraiser: Appraiser) -> dict[fx.Node, Refusal]:
    """The sums in which a linear layer could take in another term, and what is missing."""
    ways = ((node, way) for node in nodes for way in _ways(node, appraiser))
    return {node: way for node, way in ways if isinstance(way, Refusal)}


def _ways(total: fx.Node, appraiser: Appraiser) -> Iterator[Region | Refusal | None]:
    """What becomes of a sum if either operand takes in the other."""
    if is_sum(total, appraiser):
        first, second = (appraiser.current(operand) for operand in total.all_input_nodes[:2])
        yield _taking_in(first, second, total, appraiser)
        yield _taking_in(second, first, total, appraiser)


@dataclass(frozen=True, eq=False)
class _Linear:
    """A linear layer over rows of a value.

    Args:
        value: Its value, perhaps reshaped.
        path: The links that it is made of, the first one over the rows.
        form: Its form over these.
    """

    value: fx.Node
    path: tuple[Link, ...]
    form: AffineConv

    @property
    def base(self) -> fx.Node:
        """The rows."""
        return self.path[0].base


def _taking_in(
    kept: fx.Node, term: fx.Node, total: fx.Node, appraiser: Appraiser
) -> Region | Refusal | None:
    """The region in which the linear layer of one operand of a sum takes in the other operand.

    A refusal says what is missing, None that nobody expects one.
    """
    layer, ending = _reshaped(kept, appraiser), _reshaped(term, appraiser)
    linear = _linear_at(layer[-1], appraiser)
    alone = all(
        appraiser.readers_of_value(value) == {reader}
        for value, reader in zip(layer, (total, *layer), strict=False)
    )
    if linear is None or not alone or not appraiser.extents.of_one_shape(kept, term):
        return None
    rows = _rows_of(ending[-1], linear, appraiser)
    if not isinstance(rows, Rows):
        return rows
    theirs = over_positions(rows.form, rows.shape[1:], rows.times)
    if isinstance(theirs, Refusal):
        return theirs
    theirs = theirs.with_axes(len(linear.form.axes or ()))
    form = linear.form.plus(replace(theirs, base=linear.form.base))
    if not isinstance(form, AffineConv) or form.out_channels != linear.form.out_channels:
        return None
    between = () if rows.value is rows.base else appraiser.forest.links[rows.value].nodes
    last = linear.path[-1]
    order = appraiser.facts.order
    rows_of_layer = _reshaped(linear.base, appraiser)
    views_of_term = [view for view in _reshaped(rows.base, appraiser) if view not in rows_of_layer]
    inner = {*last.inner, *ending[:-1], *between, *views_of_term, total}
    path = (*linear.path[:-1], replace(last, inner=tuple(sorted(inner, key=order.__getitem__))))
    candidate = Candidate(linear.base, form, path)
    gone = appraiser.dying([(linear.value, candidate), (total, candidate)], metadata=True)
    if linear.value in appraiser.fused:
        gone |= appraiser.fused[linear.value].dying
    absorbed = (Absorbed(total, kept, rows.value, rows=rows),)
    region = appraiser.draft(candidate, linear.value, gone, absorbed=absorbed)
    if isinstance(region, Refusal) or not region.gain.saves:
        return None
    views = [*layer, *ending, *views_of_term, *rows_of_layer]
    if _is_written(views, total, region, appraiser):
        return None
    return region if appraiser.hazard_of(region) is None else None


def _linear_at(value: fx.Node, appraiser: Appraiser) -> _Linear | None:
    """The linear layer over rows that a value is, if it is one."""
    region, link = appraiser.fused.get(value), appraiser.forest.links.get(value)
    if region is not None and region.collapses and not _is_more(region):
        path, form = region.path, region.plain
    elif region is None and link is not None and link.form is not None and not link.crossed:
        path, form = (link,), link.form
    else:
        return None
    crossed = (link.value for link in path if link.form is None)
    if not all(_keeps_order(node, appraiser) for node in crossed):
        return None
    axes = form.axes
    if axes is None or not form.pointwise or form.diagonal or form.columns is not None:
        return None
    in_a_row = len(axes) <= appraiser.facts.ones.get(path[0].base, 0)
    return _Linear(value, path, form) if in_a_row else None


_UNKNOWN = Refusal(
    "the size at which the convolution is a linear layer is not known; pass example_inputs"
)


def _rows_of(value: fx.Node, linear: _Linear, appraiser: Appraiser) -> Rows | Refusal | None:
    """A value as one of the rows that a linear layer reads, if it is one of known size."""
    origin = _reshaped(linear.base, appraiser)[-1]
    columns, results = linear.form.in_channels or 0, linear.form.out_channels
    if _reshaped(value, appraiser)[-1] is origin:
        return Rows(value, value, identity(value), (columns,)) if columns == results else None
    link = appraiser.forest.links.get(value)
    region = appraiser.fused.get(value)
    if region is not None and _is_more(region):
        return None
    if link is None or link.form is None or link.form.axes is None or link.crossed:
        return None
    if _reshaped(link.base, appraiser)[-1] is not origin:
        return None
    axes = range(-len(link.form.axes), 0)
    certain = [appraiser.extents.size(link.base, axis) for axis in axes]
    seen = appraiser.facts.shapes.get(link.base, ())
    form = link.form.with_channels(appraiser.extents.size(link.base, axes.start - 1))
    if form.in_channels is None or (None in certain and not seen):
        return _UNKNOWN
    sizes = [size or seen[axis] for axis, size in zip(axes, certain, strict=True)]
    lengths = positions_after(form, sizes)
    if lengths is None:
        return None
    shape = (form.in_channels, *sizes)
    times, rest = divmod(columns, prod(shape))
    rows = Rows(link.base, value, form, shape, times, prod(lengths))
    if rest or (form.out_channels or 0) * rows.positions != results:
        return None
    # Its value is not computed any more, so that nobody would notice another size, or a batch less.
    if None not in certain and not appraiser.facts.rests_on_granted(link.nodes):
        return rows
    views = _reshaped(linear.base, appraiser)
    below = views[views.index(link.base) - 1] if link.base in views[1:] else None
    return None if below is None else replace(rows, checking=below)


def _is_more(region: Region) -> bool:
    """Whether an operator does besides what its form over its base says."""
    besides = region.gathered or region.shares or region.multiple or region.norm or region.folded
    return bool(besides)


def _reshaped(value: fx.Node, appraiser: Appraiser) -> list[fx.Node]:
    """A value, what it is a reshape of, and so on."""
    views = [value]
    while value not in appraiser.fused and _keeps_order(value, appraiser):
        value = appraiser.current(appraiser.facts.operands(value)[0])
        views.append(value)
    return views


def _keeps_order(node: fx.Node, appraiser: Appraiser) -> bool:
    """Whether a value has all entries of what it reads, and in their order."""
    known = traits(node, appraiser.facts.root)
    operands = appraiser.facts.operands(node)
    typed = any(isinstance(value, torch.dtype) for value in (*node.args, *node.kwargs.values()))
    return Trait.KEEPS_ORDER in known and bool(operands) and not typed


def _is_written(
    views: Sequence[fx.Node], total: fx.Node, region: Region, appraiser: Appraiser
) -> bool:
    """Whether somebody writes to a value that is read by several names, and so to one of them."""
    memory, order = appraiser.facts.memory, appraiser.facts.order
    return any(
        memory.write_between(view, order[view], order[total] - 1, ignoring=region.dying)
        for view in views
    )
