r"""Parts of the channels: rows of a kernel, and columns of the next one.

v[i] = x[index[i]], so a kernel before it loses rows and keeps its columns, unless it is depthwise::

    (select . K)[i, j] = K[index[i], j]        (select . diag(k))[i] = k[index[i]] * x[index[i]]

and a kernel after it that reads a channel several times has the sum of these columns for it.
Where a reshape splits an axis, several of its channels may have one factor: `spread`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from reparam.algebra import kernels
from reparam.algebra.expressions import computed
from reparam.algebra.forms import Columns, Form
from reparam.algebra.kernels import Lazy, Weights
from reparam.errors import Refusal

F = TypeVar("F", bound=Form)


def taken(form: F, columns: Columns) -> F | Refusal:
    """Some channels of a form's value."""
    form = form.with_channels(columns.total)
    if form.out_channels != columns.total:
        return Refusal(
            f"{form.out_channels} channels flow into an operator that takes some of {columns.total}"
        )
    count, pad_value = len(columns.indices), form.pad_value
    # What is taken need not keep the groups whole.
    groups = 1 if form.depthwise else form.groups or 1
    weights = Lazy(partial(_rows, columns.indices, groups), (form.weights,))
    if not form.depthwise:
        return replace(form, weights=weights, out_channels=count, groups=1, identity=False)
    if pad_value is not None and pad_value.numel() > 1:
        pad_value = computed(torch.index_select, pad_value, 0, _at(columns.indices, pad_value))
    if form.columns is not None:
        columns = Columns(
            tuple(form.columns.indices[index] for index in columns.indices), form.columns.total
        )
    return replace(
        form,
        weights=weights,
        in_channels=count,
        out_channels=count,
        groups=count,
        identity=False,
        pad_value=pad_value,
        columns=columns if columns.indices != tuple(range(columns.total)) else None,
    )


def _rows(indices: tuple[int, ...], groups: int, weights: Weights) -> Weights:
    """Some rows of a kernel, which is dense then if it has groups."""
    kernel, bias = weights
    if groups > 1:
        kernel = kernels.regroup(kernel, groups, 1)
    at = _at(indices, kernel)
    return kernel[at], None if bias is None else bias[at]


def _at(indices: tuple[int, ...], like: Tensor) -> Tensor:
    """Indices as a tensor where another one is."""
    return torch.tensor(indices, dtype=torch.long, device="cpu").to(like.device)


def without_constant(form: F) -> F:
    """The same form without its constant."""
    return replace(form, weights=Lazy(_kernel_alone, (form.weights,)), has_bias=False)


def _kernel_alone(weights: Weights) -> Weights:
    return weights[0], None


def spread(form: F, size: int, run: int) -> F:
    """A scale and a shift of channels each of which a run of neighbours shares, all over again."""
    times = size // (run * (form.out_channels or 1))
    return replace(
        form,
        weights=Lazy(partial(_repeated, run, times), (form.weights,)),
        in_channels=size,
        out_channels=size,
        groups=size,
    )


def _repeated(run: int, times: int, weights: Weights) -> Weights:
    """Every row of a kernel several times in a row, and all of that again and again."""
    kernel, bias = weights
    kernel = kernel.repeat_interleave(run, 0).repeat(times, *(1,) * (kernel.dim() - 1))
    return kernel, None if bias is None else bias.repeat_interleave(run).repeat(times)


def in_order(form: F) -> F:
    """The same form, reading every channel once and in order, if it reads all and mixes them.

    What reads a channel several times multiplies it by the sum of these columns.
    """
    columns = form.columns
    if columns is None or form.groups != 1 or len(set(columns.indices)) < columns.total:
        return form
    weights = Lazy(partial(_summed, columns), (form.weights,))
    return replace(form, weights=weights, in_channels=columns.total, columns=None)


def _summed(columns: Columns, weights: Weights) -> Weights:
    """A kernel that reads every channel once, by the sum of the columns that read it."""
    kernel, bias = weights
    summed = kernel.new_zeros((kernel.shape[0], columns.total, *kernel.shape[2:]))
    return summed.index_add_(1, _at(columns.indices, kernel), kernel), bias


def partition(several: Sequence[Columns | None]) -> int | None:
    """How many channels forms read together, if they read all, one after the other; else None."""
    parts = [columns for columns in several if columns is not None]
    together = tuple(index for columns in parts for index in columns.indices)
    totals = {columns.total for columns in parts}
    if len(parts) < len(several) or len(totals) != 1:
        return None
    total = totals.pop()
    return total if together == tuple(range(total)) else None


def own_channels(several: Sequence[Form]) -> Columns | None:
    """The channels that depthwise forms over one base read, one form after the other."""
    totals = {form.columns.total for form in several if form.columns is not None}
    if len(totals) != 1 or not all(form.depthwise for form in several):
        return None
    total = totals.pop()
    indices: list[int] = []
    for form in several:
        if form.columns is None and form.in_channels != total:
            return None
        indices += range(total) if form.columns is None else form.columns.indices
    return Columns(tuple(indices), total)
