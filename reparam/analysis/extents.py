"""Which axes of two values have the same size, for every input."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from reparam.algebra import AffineConv, AffineStack, AffineSum
from reparam.analysis.facts import Facts
from reparam.analysis.ranks import keeps_shape
from reparam.capture import Trait, chooses_by_kinds, reads_rank, reads_shape, torch_name, traits
from reparam.modules import run_function
from reparam.rules import UNKNOWN, Commuting, Extent, Step, Unknown, unpacked

_Place = tuple[fx.Node, int]


class Extents:
    """Follows axes up to the value that decides their size.

    Args:
        steps: What the operators seen so far do to the forms of their operands.
        facts: What is known of the graph.
    """

    def __init__(self, steps: Mapping[fx.Node, Step], facts: Facts) -> None:
        self.steps = steps
        self.facts = facts
        self._origins: dict[_Place, _Place] = {}

    def of(self, number: fx.Node, node: fx.Node) -> Extent | Unknown:
        """Which axes of a node's first operand surely have the size that a number is, if any."""
        first = node.args[0] if node.args else None
        rank = self.facts.ranks.get(first) if isinstance(first, fx.Node) else None
        if rank is None or not isinstance(first, fx.Node):
            return UNKNOWN
        origins = {self.origin(first, axis): axis for axis in range(-1, -rank - 1, -1)}
        axes: list[int] = []
        for factor in _factors(number):
            read = self.read(factor)
            axis = None if read is None else origins.pop(self.origin(*read), None)
            if axis is None:
                return UNKNOWN
            axes.append(axis)
        return Extent(tuple(sorted(axes)))

    def by_axes(self, number: fx.Node, reader: fx.Node) -> Any:
        """What numbers of axes alone make of a number: ``x.dim() - 2``; UNKNOWN if that is not all.

        The reader, which asks for it, is checked to get a value of the number of axes that is taken
        for granted. Others' values must surely have theirs.
        """
        result = self._by_axes(number, reader)
        entries = result if isinstance(result, tuple) else (result,)
        return result if all(type(entry) is int for entry in entries) else UNKNOWN

    def _by_axes(self, number: fx.Node, reader: fx.Node) -> Any:
        asks, facts = reads_rank(number), self.facts
        if asks or reads_shape(number):
            value = number.all_input_nodes[0]
            granted = any(value in ranks for ranks in facts.other_ranks)
            rank = facts.ranks.get(value)
            if rank is None or (granted and value not in reader.all_input_nodes):
                return UNKNOWN
            return rank if asks else _Length(rank)
        computed = number in facts.numbers and Trait.NUMBERS in traits(number)
        operands = {
            operand: self._by_axes(operand, reader)
            for operand in number.all_input_nodes
            if computed or chooses_by_kinds(number)
        }
        if not operands or any(value is UNKNOWN for value in operands.values()):
            return UNKNOWN
        args, kwargs = fx.map_arg((number.args, number.kwargs), operands.__getitem__)
        try:
            return run_function(number, args, kwargs)
        except Exception:  # it asks for more than numbers of axes
            return UNKNOWN

    def asks_alike(self, reader: fx.Node, value: fx.Node, others: Sequence[fx.Node]) -> bool:
        """Whether all that a reader asks of a value is the same of others: axes, sizes, device."""
        rank = self.facts.ranks.get(value)
        if rank is None or any(self.facts.ranks.get(other) != rank for other in others):
            return False
        axes = self._axes_read(reader, value)
        return axes is not None and all(
            self.origin(value, axis) == self.origin(other, axis)
            for axis in axes
            for other in others
        )

    def _axes_read(self, reader: fx.Node, value: fx.Node) -> set[int] | None:
        """The axes whose sizes a reader asks for, and no more than those; None if it does."""
        attribute = reader.args[1] if reader.target is getattr else None
        method = reader.target if reader.op == "call_method" else None
        if reads_rank(reader) or attribute == "device":
            return set()
        if method == "size" and len(reader.args) == 2:
            place = self._place(*reader.args)
            return None if place is None else {place[1]}
        if not reads_shape(reader):
            return None
        rank = self.facts.ranks[value]
        axes: set[int] = set()
        for user in reader.users.keys() - self.facts.unread:
            index: Any = user.args[1] if user.target is operator.getitem else None
            if isinstance(index, slice) and not user.all_input_nodes[1:]:
                axes.update(range(-rank, 0)[index])
            elif isinstance(index, int) and -rank <= index < rank:
                axes.add(index % rank - rank)
            else:
                return None
        return axes

    def read(self, number: fx.Node) -> _Place | None:
        """The value and the axis that a number is the size of, if it is one."""
        if number.op == "call_method" and number.target == "size" and len(number.args) == 2:
            return self._place(*number.args)
        if number.target is not operator.getitem or not isinstance(number.args[0], fx.Node):
            return None
        source, position = number.args[0], number.args[1]
        return self._place(source.args[0], position) if reads_shape(source) else None

    def _place(self, value: Any, position: Any) -> _Place | None:
        rank = self.facts.ranks.get(value) if isinstance(value, fx.Node) else None
        if rank is None or not isinstance(position, int):
            return None
        return value, position % rank - rank

    def origin(self, value: fx.Node, axis: int) -> _Place:
        """The first value, going up, that has an axis of this size, and the axis."""
        passed: list[_Place] = []
        place: _Place | None = (value, axis)
        while place is not None:
            place = self._origins.get(place, place)
            passed.append(place)
            place = self._above(*place)
        self._origins.update(dict.fromkeys([(value, axis), *passed], passed[-1]))
        return passed[-1]

    def _above(self, value: fx.Node, axis: int) -> _Place | None:
        """The operand and its axis that an axis takes its size from."""
        step = self.steps.get(value)
        if isinstance(step, AffineSum):
            above = [self._across(term, axis) for term in step.terms]
            places = {None if place is None else self.origin(*place) for place in above}
            return places.pop() if len(places) == 1 else None
        if isinstance(step, AffineStack):
            return None if axis == step.axis else self._across(step.terms[0], axis)
        if isinstance(step, AffineConv):
            return self._across(step, axis)
        operands = self.facts.operands(value)
        if isinstance(step, Commuting) and operands:
            operand = step.input_axis(axis, None)
            return (operands[0], operand) if isinstance(operand, int) else self._asked(value, axis)
        if operands and keeps_shape(value, self.facts.root):
            return operands[0], axis
        return None

    def _asked(self, value: fx.Node, axis: int) -> _Place | None:
        """Whose axis has the size that a reshape asks for: ``x.reshape(-1, other.size(2))``."""
        size = self._entry(value, axis)
        return self.read(size) if isinstance(size, fx.Node) else None

    def _entry(self, value: fx.Node, axis: int) -> Any:
        """What a reshape asks for as the size of an axis; None if it is none, or leaves it open."""
        if torch_name(value) not in ("view", "reshape"):
            return None
        sizes = unpacked(value.args[1:])
        entry = sizes[axis] if -axis <= len(sizes) else None
        return None if entry == -1 else entry

    def size(self, value: fx.Node, axis: int) -> int | None:
        """The size of an axis of a value, if it is the same for every input."""
        value, axis = self.origin(value, axis)
        shape = self.facts.fixed.get(value)
        if shape is not None:
            return shape[axis] if -axis <= len(shape) else None
        entry, step = self._entry(value, axis), self.steps.get(value)
        if type(entry) is int:
            return entry
        if isinstance(step, AffineConv) and step.axes is not None and axis == -len(step.axes) - 1:
            return step.out_channels
        return 1 if axis >= -self.facts.ones.get(value, 0) else None

    def of_one_shape(self, first: fx.Node, second: fx.Node) -> bool:
        """Whether two values of equally many entries surely have the same shape."""
        first, second = self._shaped_as(first), self._shaped_as(second)
        rank = self.facts.ranks.get(first)
        if first is second:
            return True
        if rank is None or self.facts.ranks.get(second) != rank:
            return False
        sizes = (
            [self._sized(value, axis) for axis in range(-rank, 0)] for value in (first, second)
        )
        # Of equally many entries one axis follows from the others.
        return len([ours for ours, theirs in zip(*sizes, strict=True) if ours != theirs]) <= 1

    def _shaped_as(self, value: fx.Node) -> fx.Node:
        """The value whose whole shape a value is given, and so on: ``x.view(other.shape)``."""
        while True:
            name, others = torch_name(value), value.args[1:]
            asked = others[0] if len(others) == 1 and isinstance(others[0], fx.Node) else None
            if asked is not None and name in ("view", "reshape") and reads_shape(asked):
                value = asked.all_input_nodes[0]
            elif asked is not None and name in ("view_as", "reshape_as"):
                value = asked
            else:
                return value

    def _sized(self, value: fx.Node, axis: int) -> Any:
        """What tells the size of an axis: a number, what computes it, or the first such axis."""
        size = self.size(value, axis)
        place = self.origin(value, axis)
        return (self._entry(*place) or place) if size is None else size

    def _across(self, form: AffineConv, axis: int) -> _Place | None:
        """The same axis of a form's base, if the form leaves its size alone."""
        base = form.base
        rank = self.facts.ranks.get(base) if isinstance(base, fx.Node) else None
        if not isinstance(base, fx.Node) or rank is None or -axis > rank:
            return None
        if form.axes is None:
            kept = form.in_channels == form.out_channels
        elif axis < -len(form.axes) - 1:
            kept = True
        elif axis == -len(form.axes) - 1:
            kept = form.depthwise
        else:
            along = form.axes[axis]
            kept = not form.transposed and along.stride == 1 and along.excess == 0
        return (base, axis) if kept else None


class _Length:
    """A shape of which nothing is known but how many axes it is of."""

    def __init__(self, axes: int) -> None:
        self.axes = axes

    def __len__(self) -> int:
        return self.axes

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise TypeError("a shape whose sizes are not known")


def _factors(number: fx.Node) -> list[fx.Node]:
    """The numbers that a number is the product of: ``height * width``."""
    factors: list[fx.Node] = []
    pending: list[Any] = [number]
    while pending:
        factor = pending.pop()
        if not isinstance(factor, fx.Node):
            return [number]
        if factor.target is operator.mul:
            pending.extend(factor.args)
        else:
            factors.append(factor)
    return factors
