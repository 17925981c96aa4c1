r"""What rules are written with: affine forms, and the methods by which they compose.

A value v of a network is an affine form over another value x if, along the channel axis and the
spatial axes after it,

    v[o] = c + sum over t of K[t] * x~[s * o + t]

with a kernel K, a constant c per channel, and x extended by its padding. Two laws do all the work:

* ``inner.then(outer)`` for a sequence, refused where a border would differ;
* ``first.plus(second)`` for two branches over the same base.

A form is a specification without tensors, cheap to compose and to compare, and weights that are
computed in float64 only once somebody wants them. A law that does not hold returns a `Refusal`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reparam.algebra.axis_composition import Axis
from reparam.algebra.expressions import UNSEEN, Computed
from reparam.algebra.forms import Columns, Form
from reparam.algebra.kernels import Lazy, Weights, exact
from reparam.algebra.laws import parallel, sequence, stacked
from reparam.errors import LawError, Refusal

Number = int | float


@dataclass(frozen=True, eq=False, repr=False)
class AffineConv(Form):
    """One convolution of one base, plus a constant per channel; its fields are those of `Form`."""

    # -- Laws -----------------------------------------------------------------------------------

    def then(self, outer: AffineConv) -> AffineConv | Refusal:
        """The form of a sequence: this one first, the outer one on its result.

        Args:
            outer: The form that acts on this form's value.

        Returns:
            One form over this form's base, or the reason why there is none.
        """
        return sequence(self, outer)

    def plus(self, other: AffineConv | AffineSum) -> AffineConv | AffineSum | Refusal:
        """The form of a sum of two branches.

        Args:
            other: The form of the other branch.

        Returns:
            One form if both have the same base, a sum of forms if not, or the reason why the
            branches do not add up.
        """
        if isinstance(other, AffineSum):
            return other.plus(self)
        return parallel(self, other) if self.base == other.base else AffineSum((self, other))

    # -- What rules are written with ------------------------------------------------------------

    def scale(self, factor: Number | Tensor, axis: int | None = None) -> AffineConv | Refusal:
        """Multiply by a number or by one number per channel.

        Args:
            factor: A number, a tensor of one element, or one entry per channel.
            axis: The channel axis of the value, counted from the end (-3 for images); needed only
                if no neighbouring convolution tells.
        """
        if not isinstance(factor, Tensor) and factor == 1:
            return self
        return self.then(_diagonal(factor, axis, shifts=False))

    def shift(self, constant: Number | Tensor, axis: int | None = None) -> AffineConv | Refusal:
        """Add a number or one number per channel; the arguments are those of `scale`."""
        if not isinstance(constant, Tensor) and constant == 0:
            return self
        return self.then(_diagonal(constant, axis, shifts=True))

    def normalize(
        self,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        axis: int | None = None,
    ) -> AffineConv | Refusal:
        """Normalise by given statistics, as batch norm does at inference (arXiv 1502.03167)."""
        like = mean if weight is None else weight
        held = mean, variance, weight, bias
        compute = partial(_normalized, eps=eps)
        return self.then(_per_channel(compute, held, mean.numel(), axis, has_bias=True, like=like))

    def convolve(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        axes: Sequence[Axis] | None = None,
        groups: int = 1,
        transposed: bool = False,
    ) -> AffineConv | Refusal:
        """Apply a convolution, a transposed convolution or, without axes, a linear layer.

        Args:
            weight: The weight as the torch operator takes it.
            bias: One entry per output channel.
            axes: Stride, dilation and padding per spatial axis; by default 1, 1 and none.
            groups: Groups of the convolution.
            transposed: Whether the convolution is a transposed one.

        Shape:
            weight ``(out_channels, in_channels / groups, *kernel)``; transposed
            ``(in_channels, out_channels / groups, *kernel)``.
        """
        taps = tuple(weight.shape[2:])
        if axes is None:
            axes = [Axis(kernel) for kernel in taps]
        rows, columns = weight.shape[0], weight.shape[1] * groups
        if transposed:
            rows, columns = columns, rows
        compute = partial(_kernel, groups=groups if transposed else None)
        return self.then(
            AffineConv(
                Lazy(compute, (), (weight, bias)),
                tuple(axes),
                columns,
                rows,
                groups,
                bias is not None,
                transposed,
                dtype=weight.dtype,
                like=weight,
            )
        )

    def select(
        self, channels: Sequence[int], total: int, axis: int | None = None
    ) -> AffineConv | Refusal:
        """Take some of the channels, in any order.

        Args:
            channels: Their numbers.
            total: How many channels there are.
            axis: The channel axis of the value, counted from the end; needed only if no
                neighbouring convolution tells.
        """
        indices = tuple(range(total)[channel] for channel in channels)
        if indices == tuple(range(total)):
            return self
        count = len(indices)
        ones = partial(_filled, (count,), 1.0)
        part = _per_channel(ones, (), count, axis, columns=Columns(indices, total))
        return self.then(part)

    def pool(self, axes: Sequence[Axis]) -> AffineConv | Refusal:
        """Average over a window: a depthwise convolution with equal taps (DBB, transform V)."""
        taps = [axis.kernel for axis in axes]
        return self._uniform(axes, 1 / prod(taps))

    def pad(self, axes: Sequence[Axis], value: Number | Tensor = 0) -> AffineConv | Refusal:
        """Pad or crop.

        Args:
            axes: Padding and its mode per spatial axis, one tap each.
            value: What padding of mode "value" holds: a number or one entry per channel.
        """
        return self._uniform(axes, 1.0, torch.as_tensor(value, dtype=torch.float64).flatten())

    def _uniform(
        self, axes: Sequence[Axis], tap: float, value: Tensor | None = None
    ) -> AffineConv | Refusal:
        compute = partial(_filled, (1, 1, *(axis.kernel for axis in axes)), tap)
        return self.then(AffineConv(Lazy(compute), tuple(axes), pad_value=value))


@dataclass(frozen=True, eq=False)
class AffineSum:
    """A sum of forms over different bases, one per base."""

    terms: tuple[AffineConv, ...]

    def plus(self, other: AffineConv | AffineSum) -> AffineConv | AffineSum | Refusal:
        """Add a branch or another sum; forms over one base become one form."""
        terms = {term.base: term for term in self.terms}
        for term in other.terms if isinstance(other, AffineSum) else (other,):
            if term.base in terms:
                merged = terms[term.base].plus(term)
                if not isinstance(merged, AffineConv):
                    return merged
                term = merged
            terms[term.base] = term
        return AffineSum(tuple(terms.values()))

    def join(self, branches: Sequence[AffineConv]) -> AffineConv | Refusal:
        """The sum of what the terms are over one base, in their order."""
        total = branches[0]
        for branch in branches[1:]:
            partial = parallel(total, branch)
            if isinstance(partial, Refusal):
                return partial
            total = partial
        return total

    def scale(self, factor: Number | Tensor, axis: int | None = None) -> AffineSum | Refusal:
        """Multiply every term."""
        return self._each([term.scale(factor, axis) for term in self.terms])

    def shift(self, constant: Number | Tensor, axis: int | None = None) -> AffineSum | Refusal:
        """Add to the first term, and so to the sum."""
        return self._each([self.terms[0].shift(constant, axis), *self.terms[1:]])

    def _each(self, terms: list[AffineConv | Refusal]) -> AffineSum | Refusal:
        refusal = next((term for term in terms if isinstance(term, Refusal)), None)
        return refusal or AffineSum(tuple(term for term in terms if isinstance(term, AffineConv)))


@dataclass(frozen=True, eq=False)
class AffineStack:
    """Forms side by side along the channel axis, counted from the end, of perhaps several bases."""

    terms: tuple[AffineConv, ...]
    axis: int

    def join(self, branches: Sequence[AffineConv]) -> AffineConv | Refusal:
        """One form of what the parts are over one base, in their order."""
        count = -1 - self.axis
        if any(branch.axes is not None and len(branch.axes) != count for branch in branches):
            return Refusal("values side by side along another axis than their channels")
        if len(branches) == 1:
            return branches[0]
        return stacked([branch.with_axes(count) for branch in branches])


Affine = AffineConv | AffineSum


def identity(base: Hashable = None, rank: int | None = None, ones: int = 0) -> AffineConv:
    """The form of a value over itself."""
    weights = Lazy(partial(_filled, (1, 1), 1.0))
    return AffineConv(weights, identity=True, rank=rank, ones=ones, base=base)


def under_condition(form: AffineConv, asked: Sequence[tuple[Computed, Any]]) -> AffineConv:
    """The same form, whose weights exist as long as questions about numbers have their answers."""
    questions, answers = zip(*asked, strict=True)
    compute = partial(_answered, answers)
    return replace(form, weights=Lazy(compute, (form.weights,), questions, checks=True))


def unseen(form: AffineConv) -> AffineConv:
    """The same form, of which nobody has seen how its weights are computed of parameters."""
    return replace(form, weights=Lazy(_as_they_were, (form.weights,), (UNSEEN,), checks=True))


def _as_they_were(weights: Weights, seen: Any) -> Weights:
    if seen is not UNSEEN:
        raise LawError(
            "its rule computes weights otherwise than by functions of torch on what it is given"
        )
    return weights


def _answered(answers: Sequence[Any], weights: Weights, *now: Any) -> Weights:
    if not all(np.array_equal(new, old) for new, old in zip(now, answers, strict=True)):
        raise LawError("its rule asked for numbers of parameters that are others now")
    return weights


def _filled(shape: tuple[int, ...], entry: float) -> Weights:
    return torch.full(shape, entry, dtype=torch.float64, device="cpu"), None


def _kernel(weight: Tensor, bias: Tensor | None, *, groups: int | None) -> Weights:
    """A kernel as torch has it; of a transposed convolution if it has groups."""
    if groups is None:
        kernel = exact(weight)
    else:
        kernel = exact(weight.unflatten(0, (groups, -1)).transpose(1, 2)).flatten(0, 1)
    return kernel, None if bias is None else exact(bias)


def _normalized(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float
) -> Weights:
    factor = (exact(variance) + eps).rsqrt()
    # What follows may write to the factor, of which the gradient of a root needs the value.
    factor = factor * (1 if weight is None else exact(weight))
    constant = -exact(mean) * factor
    return factor, constant if bias is None else constant + exact(bias)


def _diagonal(entries: Number | Tensor, axis: int | None, *, shifts: bool) -> AffineConv:
    """A scale or a shift per channel, or the same for all."""
    like = entries if isinstance(entries, Tensor) else None
    count = 1 if like is None else like.numel()
    channels = count if count > 1 or axis is not None else None
    width = (channels or 1) if count == 1 else None
    held: tuple[Tensor, ...] = ()
    if isinstance(entries, Tensor):
        compute, held = partial(_vector, width=width, shifts=shifts), (entries,)
    else:
        compute = partial(_vector, entries, width=width, shifts=shifts)
    dtype = None if like is None else like.dtype
    return _per_channel(compute, held, channels, axis, has_bias=shifts, dtype=dtype, like=like)


def _vector(entries: Number | Tensor, *, width: int | None, shifts: bool) -> Weights:
    """Factors or constants, one for each of so many channels if all have the same."""
    if isinstance(entries, Tensor):
        vector = exact(entries).flatten()
    else:
        vector = torch.tensor([entries], dtype=torch.float64, device="cpu")
    if width is not None:
        vector = vector.expand(width).clone()
    return (torch.ones_like(vector), vector) if shifts else (vector, None)


def _per_channel(
    compute: Callable[..., Weights],
    held: tuple[Tensor | None, ...],
    channels: int | None,
    axis: int | None,
    **fields: Any,
) -> AffineConv:
    """A form that multiplies and shifts every channel by itself.

    Factors and constants are computed of some tensors. The axis is the channel axis, counted from
    the end; with None the form holds for any.
    """
    axes = None if axis is None else (Axis(),) * (-1 - axis)
    diagonal = partial(_as_diagonal, compute, len(axes or ()))
    return AffineConv(Lazy(diagonal, (), held), axes, channels, channels, channels, **fields)


def _as_diagonal(compute: Callable[..., Weights], axes: int, *held: Tensor | None) -> Weights:
    factor, constant = compute(*held)
    return factor.view(-1, 1, *(1,) * axes), constant
