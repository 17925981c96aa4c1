"""At how many positions operators run: in true numbers, or at least, relative to a value.

With example inputs the sizes of all values are known. Without, bounds are that hold for any input:
a dying node is weighed at its smallest possible size, so that what replaces it is never dearer.
Along an axis, n positions of a convolution's value come from

    s * (n - 1) + 1 - excess

of what it reads; a transposed convolution makes s * (n - 1) + 1 + excess of the n that it reads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import prod

from torch import fx

from reparam.algebra import AffineConv, Axis
from reparam.analysis import Facts
from reparam.capture import reached
from reparam.planning.regions import Region
from reparam.rules import Step


class Positions:
    """Counts positions in a graph as it stands, with the values that have become one operator."""

    def __init__(
        self, steps: Mapping[fx.Node, Step], facts: Facts, fused: Mapping[fx.Node, Region]
    ) -> None:
        self.steps = steps
        self.facts = facts
        self.fused = fused

    def count(
        self,
        nodes: Collection[fx.Node],
        values: Mapping[fx.Node, float],
        form: AffineConv,
        placed: fx.Node,
        crossed: Collection[fx.Node],
    ) -> tuple[Mapping[fx.Node, float], float]:
        """How many positions each node has, at least, and how many the new operator.

        With example inputs these are the true numbers. Else they are relative: to one position of
        the value or, since a transposed convolution counts per input, of its input. The first of
        the values is the value; all come with how many positions they have for one of it. The new
        operator has the positions of what is placed, and crossed values stay where they are.
        """
        shapes = self.facts.shapes
        if next(iter(values)) not in shapes:
            return self.at_least(nodes, values, form, crossed)
        source = form.base if form.transposed and isinstance(form.base, fx.Node) else placed
        channels = form.in_channels if form.transposed else form.out_channels
        return {node: self._known(node) for node in nodes}, _elements(shapes[source], channels)

    def at_least(
        self,
        nodes: Collection[fx.Node],
        values: Mapping[fx.Node, float],
        form: AffineConv,
        crossed: Collection[fx.Node],
    ) -> tuple[Mapping[fx.Node, float], float]:
        """The same, relative, whatever the size of the input."""
        if form.transposed:
            longer = prod(least_ratio(axis, transposed=True) for axis in form.axes or ())
            below = self._below_transposed(nodes, values)
            return {node: longer if node in below else 1.0 for node in nodes}, 1.0
        return self._least(nodes, values, crossed), 1.0

    def _known(self, node: fx.Node) -> float:
        form = self._form(node)
        source = form.base if form is not None and form.transposed else node
        shape = self.facts.shapes.get(source) if isinstance(source, fx.Node) else None
        if shape is None or form is None:
            return 0.0 if shape is None else 1.0
        return _elements(shape, form.in_channels if form.transposed else form.out_channels)

    def _least(
        self,
        nodes: Collection[fx.Node],
        values: Mapping[fx.Node, float],
        crossed: Collection[fx.Node],
    ) -> dict[fx.Node, float]:
        """The fewest positions that nodes may have for one of the value."""
        least = dict(values)
        for node in sorted(nodes, key=self.facts.order.__getitem__, reverse=True):
            form = None if node in crossed else self._form(node)
            axes = () if form is None else form.axes or ()
            ratio = 1.0
            if form is not None and form.transposed:
                # It counts per position of what it reads, of which there are fewer.
                least[node] = least.get(node, 0.0) / prod(map(most_ratio, axes))
            else:
                for axis in axes:
                    ratio *= least_ratio(axis, transposed=False)
            for operand in self._operands(node):
                least[operand] = max(least.get(operand, 0.0), least.get(node, 0.0) * ratio)
        return least

    def _below_transposed(
        self, nodes: Collection[fx.Node], values: Mapping[fx.Node, float]
    ) -> set[fx.Node]:
        """The nodes that read the result of a transposed convolution, the values among them."""

        def below(node: fx.Node) -> bool:
            form = self._form(node)
            return node in nodes and not (form is not None and form.transposed)

        return reached(filter(below, values), lambda node: filter(below, self._operands(node)))

    def _form(self, node: fx.Node) -> AffineConv | None:
        """The form by which a node is computed as it stands."""
        if node in self.fused:
            return self.fused[node].form
        step = self.steps.get(node)
        return step if isinstance(step, AffineConv) else None

    def _operands(self, node: fx.Node) -> Sequence[fx.Node]:
        """What a node reads as it stands."""
        return (self.fused[node].base,) if node in self.fused else node.all_input_nodes


def _elements(shape: Iterable[int], channels: int | None) -> float:
    """Positions of a value: its elements but for the channels."""
    return max(prod(shape) / (channels or 1), 1.0)


def least_ratio(axis: Axis, *, transposed: bool) -> float:
    """A lower bound, for any length, of the longer side's length over the other's along one axis.

    For a convolution that is the input's length over the output's, for a transposed one the
    output's over the input's.
    """
    stride = axis.stride
    if not transposed:
        if axis.excess > 0:  # a single position makes the most of its padding
            return 1 / (axis.excess // stride + 1)
        return float(min(stride, 1 - axis.excess))
    # n positions make stride * (n - 1) + 1 + excess.
    excess = axis.transposed_excess
    if excess >= 0:
        return float(min(stride, 1 + excess))
    shortest = -(excess // stride) + 1  # the fewest that leave at least one position
    return (stride * (shortest - 1) + 1 + excess) / shortest


def most_ratio(axis: Axis) -> float:
    """An upper bound, for any length, of a transposed convolution's output over its input."""
    return float(max(axis.stride, 1 + axis.transposed_excess))
