r"""The laws of affine forms: in a row, side by side, and one above the other.

* `sequence`, refused where a border would differ::

      K2 * (K1 * x + c1) + c2 = (K2 . K1) * x + (K2 * c1 + c2)

* `parallel`, on the lattice that holds the taps of both::

      (K1 * x + c1) + (K2 * x + c2) = (K1 + K2) * x + (c1 + c2)

* `stacked`: the rows of K1 above those of K2; grouped where each reads channels of its own::

      [K1 * x + c1, K2 * x + c2] = [K1, K2] * x + [c1, c2]

The six transforms of DBB (arXiv 2103.13425) are instances: I (a norm) and III (a sequence) of the
first law, II (a sum) and VI (kernels of several sizes) of the second, IV (a concatenation) of the
third; V, a pool, is a form to begin with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import gcd
from typing import TypeVar

import torch
from torch import Tensor

from reparam.algebra import kernels
from reparam.algebra.axis_composition import Axis, add_axes, common_mode, compose_axes, pads_value
from reparam.algebra.forms import Columns, Form
from reparam.algebra.kernels import Lazy, Weights
from reparam.algebra.selection import in_order, own_channels, partition, taken
from reparam.errors import LawError, Refusal

F = TypeVar("F", bound=Form)


def sequence(inner: F, outer: F) -> F | Refusal:
    """The form of an outer form on an inner one's value, or why there is none.

    Exact where for each spatial axis by itself the outer kernel does not read outside the inner
    value, or what it sees there is what the inner formula gives there.
    """
    if inner.identity and not outer.identity:
        return replace(outer, base=inner.base, rank=inner.rank)
    if outer.identity:
        return inner
    pair = _connected(inner, outer)
    if isinstance(pair, Refusal):
        return pair
    inner, outer = pair
    axes = _composed_axes(inner, outer)
    if isinstance(axes, Refusal):
        return axes
    inner_groups, outer_groups = inner.groups or 1, outer.groups or 1
    groups = None if inner.groups is None else gcd(inner_groups, outer_groups)
    inner_steps, outer_steps = _steps(inner, outer, axes or ())
    compute = partial(
        kernels.compose,
        shape=kernel_shape(inner.in_channels, outer.out_channels, groups, axes),
        groups=groups or 1,
        inner_groups=inner_groups,
        outer_groups=outer_groups,
        inner_steps=inner_steps,
        outer_steps=outer_steps,
    )
    weights = Lazy(compute, (inner.weights, outer.weights))
    if any(map(pads_value, outer.axes or ())):  # case 4 of `compose_axes`
        compute = partial(_of_padded, compute, inner.dtype or torch.float32)
        held = inner.weights, outer.weights
        weights = Lazy(compute, held, (outer.pad_value,), checks=True)
    value_stays = any(map(pads_value, axes or ()))
    dtype, like = _taken_after(inner, outer)
    form = replace(
        inner,
        weights=weights,
        axes=axes,
        out_channels=outer.out_channels,
        groups=groups,
        has_bias=inner.has_bias or outer.has_bias,
        transposed=inner.transposed or outer.transposed,
        dtype=dtype,
        like=like,
        pad_value=inner.pad_value if value_stays else None,
        ones=0,
    )
    return in_order(form)


def _connected(inner: F, outer: F) -> tuple[F, F] | Refusal:
    """Two forms of a sequence, the outer one reading all channels that the inner one writes."""
    if outer.columns is not None:
        selected = taken(inner, outer.columns)
        if isinstance(selected, Refusal):
            return selected
        inner, outer = selected, replace(outer, columns=None)
    pair = _over_equal_axes(inner, outer)
    if isinstance(pair, Refusal):
        return pair
    inner, outer = pair
    outer = outer.with_channels(inner.out_channels)
    inner = inner.with_channels(outer.in_channels)
    if inner.out_channels != outer.in_channels:
        return Refusal(
            f"{inner.out_channels} channels flow into an operator of {outer.in_channels}"
        )
    return inner, outer


def parallel(first: F, second: F) -> F | Refusal:
    """The form of the sum of two forms over one base, or why the branches do not add up."""
    if first.transposed != second.transposed and not (first.diagonal and second.diagonal):
        return Refusal("a convolution and a transposed convolution do not add up to one")
    pair = _over_equal_axes(first, second)
    if isinstance(pair, Refusal):
        return pair
    first, second = pair
    second = second.with_channels(first.in_channels)
    first = first.with_channels(second.in_channels)
    if (first.in_channels, first.out_channels) != (second.in_channels, second.out_channels):
        return Refusal(
            "the branches differ in channels "
            f"({first.in_channels} to {first.out_channels}, "
            f"{second.in_channels} to {second.out_channels}), so their sum broadcasts"
        )
    if first.columns != second.columns:
        return Refusal("the branches read different channels")
    axes = _common_axes(first, second)
    if isinstance(axes, Refusal):
        return axes
    groups = None if first.groups is None else gcd(first.groups, second.groups or 1)
    compute = partial(
        kernels.add,
        shape=kernel_shape(first.in_channels, first.out_channels, groups, axes),
        groups=groups or 1,
        lattices=[_lattice(form, axes) for form in (first, second)],
    )
    dtype, like = _taken_after(first, second)
    return replace(
        first,
        weights=Lazy(compute, (first.weights, second.weights)),
        axes=None if first.axes is None else axes,
        groups=groups,
        has_bias=first.has_bias or second.has_bias,
        identity=False,
        dtype=dtype,
        like=like,
        pad_value=None,
        ones=0,
    )


def stacked(forms: Sequence[F]) -> F | Refusal:
    """The form of values side by side along the channels, or why there is none.

    Their forms are over one base, with as many axes each.
    """
    channels = next((form.in_channels for form in forms if form.in_channels is not None), None)
    own = own_channels(forms)
    if own is not None:
        return _depthwise(forms, own)
    parts = [form.with_channels(channels) for form in forms]
    total = partition([part.columns for part in parts])
    problem = _not_side_by_side(parts, total)
    if problem is not None:
        return problem
    whole = _with_taps_of_all(parts)
    if isinstance(whole, Refusal):
        return whole
    axes = whole.axes or ()
    # Branches that read channels of their own are groups; others become dense.
    groups = [1 if total is not None else part.groups or 1 for part in parts]
    compute = partial(
        kernels.stack,
        taps=[axis.kernel for axis in axes],
        lattices=[
            (own, *_lattice(part, axes)[1:]) for own, part in zip(groups, parts, strict=True)
        ],
    )
    return replace(
        whole,
        weights=Lazy(compute, tuple(part.weights for part in parts)),
        in_channels=whole.in_channels if total is None else total,
        out_channels=sum(part.out_channels or 0 for part in parts),
        groups=1 if total is None else len(parts) * (whole.groups or 1),
        has_bias=any(part.has_bias for part in parts),
        identity=False,
        pad_value=None,
        ones=0,
        columns=None,
    )


def _depthwise(parts: Sequence[F], columns: Columns) -> F | Refusal:
    """Values side by side of which each channel is made of one channel of the base alone."""
    if any(part.transposed for part in parts):
        return Refusal("transposed convolutions side by side")
    whole = _with_taps_of_all(parts)
    if isinstance(whole, Refusal):
        return whole
    axes, count = whole.axes or (), len(columns.indices)
    compute = partial(
        kernels.stack,
        taps=[axis.kernel for axis in axes],
        lattices=[(1, *_lattice(part, axes)[1:]) for part in parts],
    )
    return replace(
        whole,
        weights=Lazy(compute, tuple(part.weights for part in parts)),
        in_channels=count,
        out_channels=count,
        groups=count,
        has_bias=any(part.has_bias for part in parts),
        identity=False,
        pad_value=None,
        ones=0,
        columns=None if columns.indices == tuple(range(columns.total)) else columns,
    )


def _with_taps_of_all(parts: Sequence[F]) -> F | Refusal:
    """The first of several forms on the lattice that holds the taps of all."""
    whole = parts[0]
    for part in parts[1:]:
        axes = _disagreement(whole, part) or _common_axes(whole, part)
        if isinstance(axes, Refusal):
            return axes
        dtype, like = _taken_after(whole, part)
        whole = replace(whole, axes=axes, dtype=dtype, like=like)
    return whole


def _not_side_by_side(parts: Sequence[Form], total: int | None) -> Refusal | None:
    """Why values are not the rows of one kernel."""
    if any(part.transposed for part in parts):
        return Refusal("transposed convolutions side by side")
    if any(part.in_channels is None or part.out_channels is None for part in parts):
        return Refusal("the number of channels of a value in a concatenation is not known")
    if total is not None:
        shapes = {(part.in_channels, part.out_channels, part.groups) for part in parts}
        return Refusal("groups of different size") if len(shapes) > 1 else None
    if any(part.columns is not None for part in parts):
        return Refusal("the branches read different channels")
    if len({part.in_channels for part in parts}) > 1:
        return Refusal("the branches read different numbers of channels")
    return None


def _common_axes(first: Form, second: Form) -> tuple[Axis, ...] | Refusal:
    """The lattice that holds the taps of two forms, axis by axis."""
    axes: list[Axis] = []
    for ours, theirs in zip(first.axes or (), second.axes or (), strict=True):
        axis = add_axes(ours, theirs, transposed=first.transposed)
        if isinstance(axis, Refusal):
            return axis
        axes.append(axis)
    mode = common_mode(tuple(axes))
    if isinstance(mode, Refusal):
        return mode
    if mode == "value":
        return Refusal("branches that pad with a value")
    return tuple(axes)


def _over_equal_axes(first: F, second: F) -> tuple[F, F] | Refusal:
    """Two forms over the same number of axes, if their parameters agree."""
    problem = _disagreement(first, second)
    if problem is not None:
        return problem
    ours, theirs = first.beside(second), second.beside(first)
    if isinstance(ours, Refusal):
        return ours
    return theirs if isinstance(theirs, Refusal) else (ours, theirs)


def _disagreement(first: Form, second: Form) -> Refusal | None:
    """Why the parameters of two forms cannot become one tensor."""
    dtypes = _dtype_beside(first, second), _dtype_beside(second, first)
    if None not in dtypes and dtypes[0] != dtypes[1]:
        return Refusal(f"parameters of different dtypes ({dtypes[0]} and {dtypes[1]})")
    ours, theirs = first.like, second.like
    if ours is not None and theirs is not None and ours.device != theirs.device:
        return Refusal(f"parameters on different devices ({ours.device} and {theirs.device})")
    return None


def _dtype_beside(form: Form, other: Form) -> torch.dtype | None:
    """The type that the parameters of a form have to have beside another; None if any will do.

    A norm takes values of smaller types than its own, as a convolution gives them; a scale or a
    shift of another type than the norm's changes the type of the value.
    """
    if form.dtype is None and form.like is not None and other.diagonal:
        return form.like.dtype
    return form.dtype


def _taken_after(first: Form, second: Form) -> tuple[torch.dtype | None, Tensor | None]:
    """The common dtype of two forms, and the larger of the parameters they take after."""
    dtype = second.dtype if first.dtype is None else first.dtype
    if first.like is None or second.like is None:
        return dtype, second.like if first.like is None else first.like
    # A parameter that sets the dtype goes first, then the larger one.
    ours = first.dtype is not None, first.like.numel()
    theirs = second.dtype is not None, second.like.numel()
    return dtype, first.like if ours >= theirs else second.like


def kernel_shape(
    in_channels: int | None,
    out_channels: int | None,
    groups: int | None,
    axes: Sequence[Axis] | None,
) -> tuple[int, ...]:
    """The shape of a kernel; a depthwise one of unknown width has one channel."""
    taps = (axis.kernel for axis in axes or ())
    return out_channels or 1, (in_channels or 1) // (groups or 1), *taps


def _lattice(form: Form, axes: Sequence[Axis]) -> tuple[int, list[int], list[int]]:
    """Groups of a form, and where its taps lie on the axes of a sum."""
    pairs = list(zip(axes, form.axes or (), strict=True))
    starts = [(axis.before - own.before) // axis.dilation for axis, own in pairs]
    steps = [max(own.dilation // axis.dilation, 1) for axis, own in pairs]
    return form.groups or 1, starts, steps


def _composed_axes(inner: Form, outer: Form) -> tuple[Axis, ...] | Refusal | None:
    """The axes of a sequence; None if the forms hold for any number of axes."""
    if inner.axes is None or outer.axes is None:
        return None
    if outer.transposed:
        if inner.transposed or not inner.pointwise:
            return Refusal("a transposed convolution after a kernel with taps or a stride")
        if inner.has_bias:
            return Refusal("a transposed convolution after a bias: the border would differ")
        return outer.axes
    if inner.transposed:
        if not outer.pointwise:
            return Refusal("a kernel with taps or a stride after a transposed convolution")
        return inner.axes
    axes: list[Axis] = []
    for first, second in zip(inner.axes, outer.axes, strict=True):
        axis = compose_axes(first, second, inner_constant=inner.has_bias)
        if isinstance(axis, Refusal):
            return axis
        axes.append(axis)
    if any(map(pads_value, outer.axes)):
        problem = _pads_with_own_constant(inner, outer)
        if problem is not None:
            return problem
    mode = common_mode(tuple(axes))
    if isinstance(mode, Refusal):
        return Refusal(f"one convolution cannot pad its axes differently: {mode}")
    return tuple(axes)


def _pads_with_own_constant(inner: Form, outer: Form) -> Refusal | None:
    """Case 4 of `compose_axes`: is the padded value what the inner form gives outside?"""
    value = outer.pad_value
    if value is None:
        return Refusal("padding with an unknown value")
    if inner.like is not None and inner.like.is_meta:
        return Refusal("padding with a value, which weights on the meta device cannot tell")
    return _differs(inner.weights.evaluate(), value, inner.dtype or torch.float32)


def _differs(inner: Weights, value: Tensor, dtype: torch.dtype) -> Refusal | None:
    """Why a value is not what an inner form of a type gives outside."""
    bias = inner[1]
    constant = torch.zeros(1, dtype=torch.float64) if bias is None else bias.detach()
    value = value.detach().to(constant)
    if len({value.numel(), constant.numel()} - {1}) > 1:
        return Refusal("padding with a value of another number of channels")
    # 4 units in the last place: the value was computed in the model's own precision.
    bound = 4 * torch.finfo(dtype).eps * torch.maximum(value.abs(), constant.abs())
    if bool(((value - constant).abs() <= bound).all()):
        return None
    return Refusal(
        "padding with a value that is not the constant of what it pads: the border would differ"
    )


def _of_padded(
    compose: Callable[[Weights, Weights], Weights],
    dtype: torch.dtype,
    inner: Weights,
    outer: Weights,
    value: Tensor,
) -> Weights:
    """The weights of a sequence that pads in between, as long as the law holds that allows it."""
    problem = _differs(inner, value, dtype)
    if problem is not None:
        raise LawError(problem.reason)
    return compose(inner, outer)


def _steps(inner: Form, outer: Form, axes: Sequence[Axis]) -> tuple[list[int], list[int]]:
    """Per axis, the distance of the inner and of the outer taps on the lattice of a sequence."""
    inner_steps: list[int] = []
    outer_steps: list[int] = []
    for first, second, axis in zip(inner.axes or (), outer.axes or (), axes, strict=True):
        # A single tap has no distance of its own: any will do.
        inner_steps.append(max(first.dilation // axis.dilation, 1))
        outer_steps.append(max(first.stride * second.dilation // axis.dilation, 1))
    return inner_steps, outer_steps
