r"""The law of known sizes: a convolution of a value of known size is a linear layer.

The channels and positions of a value in a row are a vector x, and what a convolution makes of it
is one, too. Of one axis with n positions, let ``M[o, t, i]`` be 1 where output o reads input i by
tap t, which stride, dilation and padding decide, and 0 elsewhere. Then::

    (K * x)[c, o] = sum over c', i of T[c, o, c', i] x[c', i]
    T[c, o, c', i] = sum over t of K[c, c', t] M[o, t, i]

T is a Toeplitz matrix if the stride is 1; of several axes it takes one M each. RepMLPNet (arXiv
2112.11081, section 3.3) finds the same T by giving the convolution each unit vector. Every value of
k times as many channels and positions is k such vectors in a row, on which a block diagonal matrix
acts: one with k times as many groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import inf, prod

import torch
from torch import Tensor

from reparam.algebra.affine import AffineConv
from reparam.algebra.axis_composition import Axis, pads_value
from reparam.algebra.kernels import Lazy, Weights
from reparam.errors import Refusal


def over_positions(form: AffineConv, sizes: Sequence[int], times: int = 1) -> AffineConv | Refusal:
    """The form of a linear layer that does to all channels and positions what a form does to them.

    Args:
        form: A form over the last axes of a value.
        sizes: How many positions the value has along each of these axes.
        times: How many such values in a row the linear layer reads.

    Returns:
        The form over channels and positions in a row, or why there is none.
    """
    if form.identity:
        return form
    if form.columns is not None or form.in_channels is None or form.out_channels is None:
        return Refusal("the channels that it reads are not known")
    axes = form.axes or ()
    if any(map(pads_value, axes)):
        return Refusal("padding with a value other than zero is not linear")
    lengths = positions_after(form, sizes)
    if lengths is None:
        return Refusal("it is not defined for values of this size")
    compute = partial(
        _unrolled,
        axes=axes,
        sizes=tuple(zip(sizes, lengths, strict=True)),
        times=times,
        transposed=form.transposed,
    )
    return replace(
        form,
        weights=Lazy(compute, (form.weights,)),
        axes=(),
        in_channels=form.in_channels * prod(sizes) * times,
        out_channels=form.out_channels * prod(lengths) * times,
        groups=(form.groups or 1) * times,
        transposed=False,
        rank=None,
        ones=0,
    )


def positions_after(form: AffineConv, sizes: Sequence[int]) -> tuple[int, ...] | None:
    """How many positions a value has along each axis; None if a form is not defined for them.

    Args:
        form: The form of the value.
        sizes: How many positions its base has along each axis.
    """
    lengths: list[int] = []
    for axis, size in zip(form.axes or (), sizes, strict=True):
        if form.transposed:
            length = axis.stride * (size - 1) + 1 + axis.transposed_excess
        else:
            length = (size + axis.excess - 1) // axis.stride + 1
        # A border holds no more than torch finds in the value to put there.
        most = {"reflect": size - 1, "circular": size}.get(axis.mode, inf)
        if size < 1 or length < 1 or max(axis.before, axis.after) > most:
            return None
        lengths.append(length)
    return tuple(lengths)


def _unrolled(
    weights: Weights,
    *,
    axes: Sequence[Axis],
    sizes: Sequence[tuple[int, int]],
    times: int,
    transposed: bool,
) -> Weights:
    """The matrix T, so many times above each other, as a kernel without spatial axes."""
    kernel, bias = weights
    rows, count = kernel.shape[0], len(axes)
    for axis, (size, length) in zip(axes, sizes, strict=True):  # the first axis of taps each time
        reads = _reads(axis, size, length, transposed=transposed).to(kernel)
        kernel = torch.tensordot(kernel, reads, ([2], [1]))
    outputs = [0, *range(2, 2 + 2 * count, 2)]
    matrix = kernel.permute(*outputs, 1, *range(3, 3 + 2 * count, 2))
    positions = prod(length for _, length in sizes)
    constant = None
    if bias is not None:
        constant = bias.expand(rows).repeat_interleave(positions).repeat(times)
    return matrix.reshape(rows * positions, -1).repeat(times, 1), constant


def _reads(axis: Axis, size: int, length: int, *, transposed: bool) -> Tensor:
    """The tensor M of one axis, by output, tap and input."""
    outputs = torch.arange(length, device="cpu").view(-1, 1, 1)
    taps = torch.arange(axis.kernel, device="cpu").view(1, -1, 1) * axis.dilation - axis.before
    inputs = torch.arange(size, device="cpu")
    if transposed:
        return axis.stride * inputs + taps == outputs
    return _entries(axis.stride * outputs + taps, axis, size) == inputs


def _entries(positions: Tensor, axis: Axis, size: int) -> Tensor:
    """The entries of a value that lie at some positions, also at those of its border."""
    if axis.mode == "circular":
        return positions.remainder(size)
    if axis.mode == "replicate":
        return positions.clamp(0, size - 1)
    if axis.mode == "reflect":
        last = size - 1
        return last - (last - positions.abs()).abs()
    return positions  # beyond the value there is none: zeros
