"""Sizes that a region reads of values outside of it: what they are where its base has a shape.

Such as ``y.view(batch, 16, height * width)`` with sizes of the model's own input. Which axes of the
base have these sizes the graph tells, and the example inputs what the others are with theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from reparam.analysis import Part
from reparam.capture import Trait, reads_shape, traits
from reparam.modules import run_function


class UnverifiableError(Exception):
    """A region cannot be run by itself."""


class OutsideSizes:
    """Tells numbers that do not follow from the value that a region is run on.

    Args:
        part: What the region is a part of.
        base: The value that it is run on.
        end: The value that it is run for.
    """

    def __init__(self, part: Part, base: fx.Node, end: fx.Node) -> None:
        self._part = part
        self._base = base
        self._following = _following(base, part.facts.order, end)

    def tells(self, node: fx.Node) -> bool:
        """Whether a node is a number that does not follow from the base."""
        return node in self._part.facts.numbers and node not in self._following

    def value(self, node: fx.Node, shape: Sequence[int]) -> Any:
        """The number, if the base has a shape.

        Raises:
            UnverifiableError: If that does not follow from it.
        """
        facts, extents = self._part.facts, self._part.extents
        exemplary = facts.shapes.get(self._base) == tuple(shape)
        place = extents.read(node)
        if place is not None:
            value, axis = place
            if exemplary and value in facts.shapes:
                return facts.shapes[value][axis]
            origin = extents.origin(value, axis)
            for own in range(-len(shape), 0):
                if extents.origin(self._base, own) == origin:
                    return shape[own]
        elif reads_shape(node) and exemplary and node.args[0] in facts.shapes:
            return facts.shapes[node.all_input_nodes[0]]
        elif Trait.NUMBERS in traits(node) and node.all_input_nodes:
            args, kwargs = fx.map_arg(
                (node.args, node.kwargs), lambda operand: self.value(operand, shape)
            )
            return run_function(node, args, kwargs)
        hint = "" if facts.shapes else "; pass example_inputs"
        raise UnverifiableError(f"it depends on {node.name}, which comes from outside{hint}")


def _following(base: fx.Node, order: Mapping[fx.Node, int], end: fx.Node) -> set[fx.Node]:
    """The nodes before the end that read a value, or what follows from it."""
    following: set[fx.Node] = set()
    pending = [base]
    while pending:
        for reader in pending.pop().users:
            if reader not in following and order[reader] <= order[end]:
                following.add(reader)
                pending.append(reader)
    return following
