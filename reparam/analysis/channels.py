"""The number of channels of a value, as far as its producers tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx, nn

from reparam.algebra import AffineConv, AffineStack, AffineSum
from reparam.analysis.facts import Facts
from reparam.analysis.ranks import keeps_shape, pooled_axes
from reparam.capture import Trait, torch_name, traits
from reparam.modules import fetch
from reparam.rules import Commuting, Normalized, Selecting, Step


def known_channels(
    node: fx.Node, axis: int, taken: int | None, steps: Mapping[fx.Node, Step], facts: Facts
) -> int | None:
    """The size of one axis of a value, if its producers tell.

    Args:
        node: The value.
        axis: The axis, counted from the end.
        taken: The size that the model's own inputs are taken to have. If None, nothing is taken
            for granted: what the axis of the example inputs has, others need not have.
        steps: What the operators before do to the forms of their operands.
        facts: What is known of the graph.
    """
    pending = [(node, axis)]
    sizes: list[int | None] = []
    seen: set[tuple[fx.Node, int]] = set()
    while pending:
        place = pending.pop()
        if place in seen:
            continue
        seen.add(place)
        size = _size_or_operands(*place, taken, steps, facts)
        if isinstance(size, list):
            pending.extend(size)
        else:
            sizes.append(size)
    # Of the operands of a sum or a product one that is longer than 1 tells.
    longer = next((size for size in sizes if size is not None and size > 1), None)
    if longer is None and None not in sizes:
        return next(iter(sizes), None)
    return longer


def _size_or_operands(
    value: fx.Node, axis: int, taken: int | None, steps: Mapping[fx.Node, Step], facts: Facts
) -> int | list[tuple[fx.Node, int]] | None:
    """The size of one axis of a value, or else the operands, and their axes, that it depends on."""
    shape = (facts.fixed if taken is None else facts.shapes).get(value)
    if shape is not None:
        return shape[axis] if -axis <= len(shape) else None
    if value.op == "placeholder":
        return taken
    step = steps.get(value)
    told = _told_by_itself(value, axis, step, facts)
    if told is not None:
        return told
    operands = facts.operands(value)
    if isinstance(step, AffineConv):
        return _size_in_form(step, axis)
    if isinstance(step, AffineSum):
        return [(term.base, axis) for term in step.terms if isinstance(term.base, fx.Node)]
    if isinstance(step, AffineStack):
        if step.axis == axis:
            return _side_by_side(step, taken, steps, facts)
        return [(operands[0], axis)]
    if isinstance(step, Commuting):
        operand = step.input_axis(axis, None)
        return [(operands[0], operand)] if isinstance(operand, int) and operands else None
    if Trait.BROADCASTS in traits(value) and operands:
        return [(operand, axis) for operand in operands]
    kept = keeps_shape(value, facts.root) or axis < -pooled_axes(value, facts.root)
    return [(operands[0], axis)] if operands and kept else None


def _size_in_form(form: AffineConv, axis: int) -> int | list[tuple[fx.Node, int]] | None:
    """The size of the channels of a form, or who tells the size of an axis that it keeps."""
    channel = None if form.axes is None else -len(form.axes) - 1
    if form.out_channels is not None:
        return form.out_channels if channel in (None, axis) else None
    along = None if channel is None or axis <= channel else (form.axes or ())[axis]
    resized = along is not None and (form.transposed or along.stride != 1 or along.excess != 0)
    return [(form.base, axis)] if isinstance(form.base, fx.Node) and not resized else None


def _side_by_side(
    stack: AffineStack, taken: int | None, steps: Mapping[fx.Node, Step], facts: Facts
) -> int | None:
    total = 0
    for part in stack.terms:
        operand = part.base
        here = part.out_channels
        if here is None and isinstance(operand, fx.Node) and operand.op != "placeholder":
            here = known_channels(operand, stack.axis, taken, steps, facts)
        if here is None:
            return None
        total += here
    return total


def _told_by_itself(node: fx.Node, axis: int, step: Step | None, facts: Facts) -> int | None:
    """The size of an axis that an operator tells whatever it reads: a norm, a table, a slice."""
    if isinstance(step, Normalized) and axis == -1 - len(step.ending.axes or ()):
        return step.norm.channels
    if axis == -1 and node.op == "call_module":
        module = fetch(facts.root, str(node.target))
        if type(module) is nn.Embedding:
            return module.embedding_dim
    rank = facts.ranks.get(node)
    return 1 if rank is not None and _takes_one(node, axis + rank) else None


def _takes_one(node: fx.Node, axis: int) -> bool:
    """Whether a slice leaves a single entry along an axis: ``x[:, 2:3]``."""
    index = node.args[1] if torch_name(node) == "getitem" else None
    if not isinstance(index, tuple) or len(index) <= axis or set(map(type, index)) != {slice}:
        return False
    start, stop = index[axis].start or 0, index[axis].stop
    if type(start) is not int or type(stop) is not int or index[axis].step not in (None, 1):
        return False
    return stop - start == 1 and start >= 0


def of_known_channels(
    stack: AffineStack, facts: Facts, steps: Mapping[fx.Node, Step]
) -> AffineStack:
    """Values side by side, with as many channels as their producers tell."""

    def channels(term: AffineConv) -> int | None:
        if term.out_channels is not None or not isinstance(term.base, fx.Node):
            return term.out_channels
        return known_channels(term.base, stack.axis, None, steps, facts)

    return replace(stack, terms=tuple(term.with_channels(channels(term)) for term in stack.terms))


# -- One channel taken out, and given its axis back ------------------------------------------------


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
