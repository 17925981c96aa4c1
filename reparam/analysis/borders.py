"""Borders that are assigned to.

Padding with zeros whose border is overwritten by a constant per channel is padding with it::

    y = pad(x); y[:, :, :1] = b; y[:, :, -1:] = b; y[..., :1] = b; y[..., -1:] = b

if what is written covers the padding and nothing else, and is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from reparam.algebra import AffineConv, Axis, computed
from reparam.analysis.facts import Facts
from reparam.capture import assign, assignments
from reparam.errors import LawError, Refusal
from reparam.rules import UNKNOWN_RANK, Step

_WHOLE = slice(None)


def assigned_border(
    node: fx.Node, steps: Mapping[fx.Node, Step], facts: Facts
) -> AffineConv | Refusal | None:
    """What the last of several assignments to a padded value makes of it.

    Returns:
        A padding with a value, or why it is none; None if nothing was padded, or if the next
        assignment tells.
    """
    padded, *assigned = assignments(node)
    form = steps.get(padded)
    if not isinstance(form, AffineConv) or not _only_pads(form):
        return None
    border = _padding(form, padded, assigned, facts)
    goes_on = any(user.target is assign and user.args[0] is node for user in node.users)
    return None if goes_on and isinstance(border, Refusal) else border


def _only_pads(form: AffineConv) -> bool:
    """Whether a form is a padding by zeros or by a value, and nothing else."""
    axes = form.axes or ()
    if form.has_bias or form.groups is not None or form.transposed or form.columns is not None:
        return False
    if not any(axis.padded for axis in axes) or any(
        axis.kernel > 1 or axis.stride > 1 or axis.cropped or axis.mode not in ("zeros", "value")
        for axis in axes
    ):
        return False
    kernel, _ = form.weights.evaluate()
    return form.weights.fixed and bool((kernel == 1).all())


def _padding(
    form: AffineConv, padded: fx.Node, assigned: Sequence[fx.Node], facts: Facts
) -> AffineConv | Refusal:
    """The form of a padding whose border was written to."""
    axes = form.axes or ()
    if facts.ranks.get(padded) != len(axes) + 2:
        return UNKNOWN_RANK
    start, end = facts.order[padded], facts.order[assigned[-1]]
    if facts.memory.write_between(padded, start, end, ignoring=assigned):
        return Refusal("its border is not all that is written to in place")
    seen = next(filter(None, map(facts.memory.overwrites, assigned)), None)
    if seen is not None:
        return seen
    # A value of one position, whose borders have their true size: who wrote last, and where?
    sizes = [axis.before + 1 + axis.after for axis in axes]
    writer = torch.full(sizes, -1, device="cpu")
    for index, node in enumerate(assigned):
        part = _part(node.args[1], axes)
        if part is None or not writer[part].numel():
            return Refusal("what is assigned may be more than its border, or none of it")
        writer[part] = index
    inside = writer[tuple(axis.before for axis in axes)] >= 0
    if inside or int((writer < 0).sum()) > 1:
        return Refusal("what is assigned is not all of its border, or more than that")
    last_writers = [assigned[index] for index in writer.unique().tolist() if index >= 0]
    constants = [_per_channel(node, axes, facts) for node in last_writers]
    value = constants[0]
    if value is None or not all(
        other is not None and torch.equal(value, other) for other in constants
    ):
        return Refusal("its border does not hold one constant per channel")
    value = computed(_one_of, *constants)
    filled = [replace(axis, mode="value") if axis.padded else axis for axis in axes]
    return replace(form, axes=tuple(filled), pad_value=value)


def _one_of(value: Tensor, *others: Tensor) -> Tensor:
    """A value that is equal to others.

    Raises:
        LawError: If it is not, any more.
    """
    if not all(torch.equal(value, other) for other in others):
        raise LawError("its border does not hold one constant per channel")
    return value.clone()


def _part(key: Any, axes: Sequence[Axis]) -> tuple[int | slice, ...] | None:
    """An index of the spatial axes that means the same part of the border at any size."""
    entries = list(key) if isinstance(key, tuple) else [key]
    if ... not in entries:
        entries.append(...)
    at = entries.index(...)
    entries[at : at + 1] = [_WHOLE] * (len(axes) + 3 - len(entries))
    batch, channels, *spatial = entries
    if batch != _WHOLE or channels != _WHOLE or len(spatial) != len(axes):
        return None
    if not all(_splits_nothing(entry, axis) for entry, axis in zip(spatial, axes, strict=True)):
        return None
    return tuple(spatial)


def _splits_nothing(entry: Any, axis: Axis) -> bool:
    """Whether an index takes what is inside as a whole, or nothing of it, at any size."""
    if isinstance(entry, slice):
        return entry.step in (None, 1) and all(
            bound is None or (type(bound) is int and -axis.after <= bound <= axis.before)
            for bound in (entry.start, entry.stop)
        )
    return type(entry) is int and -axis.after <= entry < axis.before


def _per_channel(node: fx.Node, axes: Sequence[Axis], facts: Facts) -> Tensor | None:
    """What an assignment writes, if it is a number or one number per channel."""
    _, key, value = node.args
    if isinstance(value, fx.Node):
        value = facts.constants.exact(value) if value in facts.sources else None
    elif isinstance(value, int | float):
        value = torch.tensor(value, device="cpu")
    if not isinstance(value, Tensor) or value.is_complex() or value.is_meta:
        return None
    # Positions leave their axis out of what is written to; the channels are its second axis.
    spatial = sum(isinstance(entry, slice) for entry in _part(key, axes) or ())
    channels = value.shape[-spatial - 1] if value.dim() > spatial else 1
    return computed(_flat, value) if channels == value.numel() else None


def _flat(value: Tensor) -> Tensor:
    return value.double().flatten()
