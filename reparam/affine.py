r"""Affine forms and their laws; knows torch tensors, but no graphs.

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

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import gcd, prod

import torch
from torch import Tensor

from reparam import kernels
from reparam.errors import Refusal
from reparam.geometry import Axis, add_axes, common_mode, compose_axes
from reparam.kernels import Lazy, Weights, exact

Number = int | float


@dataclass(frozen=True, eq=False)
class AffineConv:
    """One convolution of one base, plus a constant per channel.

    Args:
        weights: Kernel and bias, computed on demand.
        axes: One entry per spatial axis; empty for a linear layer over the last axis; None for a
            pointwise form that holds for any number of axes.
        in_channels: Channels of the base; None if the form holds for any number.
        out_channels: Channels of the value; None if the form holds for any number.
        groups: Groups of the kernel; None for one group per channel of an unknown number.
        has_bias: Whether there is a constant.
        transposed: Whether the kernel belongs to a transposed convolution.
        identity: Whether the value is the base itself.
        dtype: Type that the weights will be rounded to; None as long as any will do.
        like: A parameter whose device, memory format and ``requires_grad`` the weights take over.
        pad_value: What padding of mode "value" holds, one entry per channel or one for all.
        rank: Number of axes of the base and of the value, where known.
        ones: Number of last axes of the base that are known to have size 1.
        base: The value the form is over; forms over different bases do not add up.
    """

    weights: Lazy
    axes: tuple[Axis, ...] | None = None
    in_channels: int | None = None
    out_channels: int | None = None
    groups: int | None = None
    has_bias: bool = False
    transposed: bool = False
    identity: bool = False
    dtype: torch.dtype | None = None
    like: Tensor | None = None
    pad_value: Tensor | None = None
    rank: int | None = None
    ones: int = 0
    base: Hashable = None

    # -- What a form is -------------------------------------------------------------------------

    @property
    def depthwise(self) -> bool:
        """Whether every channel of the value reads its own channel of the base only."""
        return self.groups is None or self.in_channels == self.out_channels == self.groups

    @property
    def pointwise(self) -> bool:
        """Whether every position of the value reads its own position of the base only."""
        return not self.transposed and all(axis.pointwise for axis in self.axes or ())

    @property
    def diagonal(self) -> bool:
        """Whether the form is a scale and a shift per channel."""
        return self.depthwise and self.pointwise

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds per output position (per input position if transposed); 0 for scales."""
        if self.diagonal or self.in_channels is None or self.out_channels is None:
            return 0
        taps = prod(axis.kernel for axis in self.axes or ())
        return self.out_channels * (self.in_channels // (self.groups or self.in_channels)) * taps

    def __repr__(self) -> str:
        if self.identity:
            return "AffineConv(identity)"
        axes = "any" if self.axes is None else ", ".join(map(repr, self.axes))
        return (
            f"AffineConv({self.in_channels} -> {self.out_channels}, groups={self.groups}, "
            f"axes=[{axes}], bias={self.has_bias}, transposed={self.transposed})"
        )

    # -- Laws -----------------------------------------------------------------------------------

    def then(self, outer: AffineConv) -> AffineConv | Refusal:
        """The form of a sequence: this one first, the outer one on its result.

        Exact where for each spatial axis by itself the outer kernel does not read outside the
        inner value, or what it sees there is what the inner formula gives there.

        Args:
            outer: The form that acts on this form's value.

        Returns:
            One form over this form's base, or the reason why there is none.
        """
        if self.identity and not outer.identity:
            return replace(outer, base=self.base, rank=self.rank)
        if outer.identity:
            return self
        context = _agree(self, outer)
        if isinstance(context, Refusal):
            return context
        beside = self._beside(outer), outer._beside(self)
        if isinstance(beside[0], Refusal):
            return beside[0]
        if isinstance(beside[1], Refusal):
            return beside[1]
        inner = beside[0].with_channels(beside[1].in_channels)
        outer = beside[1].with_channels(inner.out_channels)
        if inner.out_channels != outer.in_channels:
            return Refusal(
                f"{inner.out_channels} channels flow into an operator of {outer.in_channels}"
            )
        axes = inner._composed_axes(outer)
        if isinstance(axes, Refusal):
            return axes
        known = inner.groups is not None
        inner_groups, outer_groups = inner.groups or 1, outer.groups or 1
        groups = gcd(inner_groups, outer_groups) if known else None
        shape = (
            outer.out_channels or 1,
            (inner.in_channels or 1) // (groups or 1),
            *(axis.kernel for axis in axes or ()),
        )
        steps = [
            _steps(a, b, c)
            for a, b, c in zip(inner.axes or (), outer.axes or (), axes or (), strict=True)
        ]
        compute = partial(
            kernels.compose,
            shape=shape,
            groups=groups or 1,
            inner_groups=inner_groups,
            outer_groups=outer_groups,
            inner_steps=[step for step, _ in steps],
            outer_steps=[step for _, step in steps],
        )
        value_stays = any(axis.mode == "value" and axis.padded for axis in axes or ())
        return AffineConv(
            Lazy(compute, (inner.weights, outer.weights)),
            axes,
            inner.in_channels,
            outer.out_channels,
            groups,
            inner.has_bias or outer.has_bias,
            inner.transposed or outer.transposed,
            dtype=context[0],
            like=context[1],
            pad_value=inner.pad_value if value_stays else None,
            rank=self.rank,
            base=self.base,
        )

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
        if self.base != other.base:
            return AffineSum((self, other))
        if self.transposed != other.transposed and not (self.diagonal and other.diagonal):
            return Refusal("a convolution and a transposed convolution do not add up to one")
        context = _agree(self, other)
        if isinstance(context, Refusal):
            return context
        beside = self._beside(other), other._beside(self)
        if isinstance(beside[0], Refusal):
            return beside[0]
        if isinstance(beside[1], Refusal):
            return beside[1]
        first = beside[0].with_channels(beside[1].in_channels)
        second = beside[1].with_channels(first.in_channels)
        if (first.in_channels, first.out_channels) != (second.in_channels, second.out_channels):
            return Refusal(
                "the branches differ in channels "
                f"({first.in_channels} to {first.out_channels}, "
                f"{second.in_channels} to {second.out_channels}), so their sum broadcasts"
            )
        axes: list[Axis] = []
        for one, two in zip(first.axes or (), second.axes or (), strict=True):
            axis = add_axes(one, two, transposed=first.transposed)
            if isinstance(axis, Refusal):
                return axis
            axes.append(axis)
        mode = common_mode(tuple(axes))
        if isinstance(mode, Refusal):
            return mode
        if mode == "value":
            return Refusal("a sum of branches that pad with a value")
        groups = None if first.groups is None else gcd(first.groups, second.groups or 1)
        shape = (
            first.out_channels or 1,
            (first.in_channels or 1) // (groups or 1),
            *(axis.kernel for axis in axes),
        )
        lattices = [
            (
                form.groups or 1,
                [
                    (axis.before - own.before) // axis.dilation
                    for axis, own in zip(axes, form.axes or (), strict=True)
                ],
                [
                    max(own.dilation // axis.dilation, 1)
                    for axis, own in zip(axes, form.axes or (), strict=True)
                ],
            )
            for form in (first, second)
        ]
        compute = partial(kernels.add, shape=shape, groups=groups or 1, lattices=lattices)
        return AffineConv(
            Lazy(compute, (first.weights, second.weights)),
            None if first.axes is None else tuple(axes),
            first.in_channels,
            first.out_channels,
            groups,
            first.has_bias or second.has_bias,
            first.transposed,
            dtype=context[0],
            like=context[1],
            rank=self.rank,
            base=self.base,
        )

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
        return self.then(_diagonal(scale=factor, axis=axis))

    def shift(self, constant: Number | Tensor, axis: int | None = None) -> AffineConv | Refusal:
        """Add a number or one number per channel; the arguments are those of `scale`."""
        if not isinstance(constant, Tensor) and constant == 0:
            return self
        return self.then(_diagonal(shift=constant, axis=axis))

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

        def compute() -> Weights:
            factor = (exact(variance) + eps).rsqrt()
            if weight is not None:
                factor = factor * exact(weight)
            constant = -exact(mean) * factor
            if bias is not None:
                constant = constant + exact(bias)
            return factor.view(-1, 1, *(1,) * count), constant

        count = 0 if axis is None else -1 - axis
        channels = mean.numel()
        return self.then(
            AffineConv(
                Lazy(compute),
                None if axis is None else (Axis(),) * count,
                channels,
                channels,
                channels,
                has_bias=True,
                like=mean if weight is None else weight,
            )
        )

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

        def compute() -> Weights:
            kernel = exact(weight)
            if transposed:
                kernel = kernel.unflatten(0, (groups, -1)).transpose(1, 2)
                kernel = kernel.reshape(rows, columns // groups, *taps)
            return kernel, None if bias is None else exact(bias)

        return self.then(
            AffineConv(
                Lazy(compute),
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

    def pool(self, axes: Sequence[Axis]) -> AffineConv | Refusal:
        """Average over a window: a depthwise convolution with equal taps (DBB, transform VI)."""
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
        taps = [axis.kernel for axis in axes]

        def compute() -> Weights:
            return torch.full((1, 1, *taps), tap, dtype=torch.float64, device="cpu"), None

        return self.then(AffineConv(Lazy(compute), tuple(axes), pad_value=value))

    def _composed_axes(self, outer: AffineConv) -> tuple[Axis, ...] | Refusal | None:
        if self.axes is None or outer.axes is None:
            return None
        if outer.transposed:
            if self.transposed or not self.pointwise:
                return Refusal("a transposed convolution after a kernel with taps or a stride")
            if self.has_bias:
                return Refusal("a transposed convolution after a bias: the border would differ")
            return outer.axes
        if self.transposed:
            if not outer.pointwise:
                return Refusal("a kernel with taps or a stride after a transposed convolution")
            return self.axes
        axes: list[Axis] = []
        for one, two in zip(self.axes, outer.axes, strict=True):
            axis = compose_axes(one, two, inner_constant=self.has_bias)
            if isinstance(axis, Refusal):
                return axis
            axes.append(axis)
        if any(axis.mode == "value" and axis.padded for axis in outer.axes):
            problem = self._pads_with_own_constant(outer)
            if problem is not None:
                return problem
        mode = common_mode(tuple(axes))
        if isinstance(mode, Refusal):
            return Refusal(f"one convolution cannot pad its axes differently: {mode}")
        return tuple(axes)

    def _pads_with_own_constant(self, outer: AffineConv) -> Refusal | None:
        """Law 4: is the padded value what this form gives outside, in every channel?"""
        value = outer.pad_value
        if value is None:
            return Refusal("padding with an unknown value")
        if self.like is not None and self.like.is_meta:
            return Refusal("padding with a value, which weights on the meta device cannot tell")
        _, bias = self.weights.evaluate()
        constant = torch.zeros(1, dtype=torch.float64) if bias is None else bias
        value = value.to(constant)
        dtype = self.dtype or torch.float32
        # 4 units in the last place: the value was computed in the model's own precision.
        bound = 4 * torch.finfo(dtype).eps * torch.maximum(value.abs(), constant.abs())
        if bool(((value - constant).abs() <= bound).all()):
            return None
        return Refusal(
            "padding with a value that is not the constant of what it pads: the border would differ"
        )

    def _beside(self, other: AffineConv) -> AffineConv | Refusal:
        """Adopt the number of spatial axes of a neighbour."""
        if self.axes is None and other.axes is not None:
            return self.with_axes(len(other.axes))
        if self.axes is not None and other.axes is not None and len(self.axes) != len(other.axes):
            return Refusal(
                f"operators over {len(self.axes)} and {len(other.axes)} spatial axes: their "
                "channels lie along different axes"
            )
        return self

    def with_axes(self, count: int) -> AffineConv:
        """The same pointwise form for another number of spatial axes."""
        if self.axes is not None and len(self.axes) == count:
            return self

        def reshape(weights: Weights) -> Weights:
            kernel, bias = weights
            return kernel.view(*kernel.shape[:2], *(1,) * count), bias

        return replace(self, axes=(Axis(),) * count, weights=Lazy(reshape, (self.weights,)))

    def with_channels(self, channels: int | None) -> AffineConv:
        """The same depthwise form for a known number of channels."""
        if self.groups is not None or channels is None:
            return self

        def widen(weights: Weights) -> Weights:
            kernel, bias = weights
            kernel = kernels.broadcast_channels(kernel, channels)
            return kernel, None if bias is None else bias.expand(channels).clone()

        return replace(
            self,
            in_channels=channels,
            out_channels=channels,
            groups=channels,
            weights=Lazy(widen, (self.weights,)),
        )


@dataclass(frozen=True, eq=False)
class AffineSum:
    """A sum of forms over different bases.

    Args:
        terms: One form per base.
    """

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

    def scale(self, factor: Number | Tensor, axis: int | None = None) -> AffineSum | Refusal:
        """Multiply every term."""
        return self._each([term.scale(factor, axis) for term in self.terms])

    def shift(self, constant: Number | Tensor, axis: int | None = None) -> AffineSum | Refusal:
        """Add to the first term, and so to the sum."""
        return self._each([self.terms[0].shift(constant, axis), *self.terms[1:]])

    def _each(self, terms: list[AffineConv | Refusal]) -> AffineSum | Refusal:
        for term in terms:
            if isinstance(term, Refusal):
                return term
        return AffineSum(tuple(term for term in terms if isinstance(term, AffineConv)))


Affine = AffineConv | AffineSum


def identity(base: Hashable = None, rank: int | None = None, ones: int = 0) -> AffineConv:
    """The form of a value over itself."""

    def compute() -> Weights:
        return torch.ones(1, 1, dtype=torch.float64, device="cpu"), None

    return AffineConv(Lazy(compute), identity=True, rank=rank, ones=ones, base=base)


def _diagonal(
    scale: Number | Tensor = 1, shift: Number | Tensor = 0, axis: int | None = None
) -> AffineConv:
    """A scale and a shift per channel, or the same for all."""
    tensors = [part for part in (scale, shift) if isinstance(part, Tensor)]
    channels = max((tensor.numel() for tensor in tensors), default=1)
    known = channels if channels > 1 or axis is not None else None
    count = None if axis is None or known is None else -1 - axis
    has_bias = isinstance(shift, Tensor) or shift != 0

    def vector(part: Number | Tensor) -> Tensor:
        if isinstance(part, Tensor):
            tensor = exact(part).flatten()
        else:
            tensor = torch.tensor([part], dtype=torch.float64, device="cpu")
        return tensor.expand(known or 1).clone() if tensor.numel() == 1 else tensor

    def compute() -> Weights:
        kernel = vector(scale).view(-1, 1, *(1,) * (count or 0))
        return kernel, vector(shift) if has_bias else None

    return AffineConv(
        Lazy(compute),
        None if count is None else (Axis(),) * count,
        known,
        known,
        known,
        has_bias,
        dtype=tensors[0].dtype if tensors else None,
        like=tensors[0] if tensors else None,
    )


def _agree(
    first: AffineConv, second: AffineConv
) -> tuple[torch.dtype | None, Tensor | None] | Refusal:
    """The common dtype of two forms, and the larger of the parameters they take after."""
    if first.dtype is not None and second.dtype is not None and first.dtype != second.dtype:
        return Refusal(f"parameters of different dtypes ({first.dtype} and {second.dtype})")
    dtype = second.dtype if first.dtype is None else first.dtype
    if first.like is None or second.like is None:
        return dtype, second.like if first.like is None else first.like
    if first.like.device != second.like.device:
        return Refusal(
            f"parameters on different devices ({first.like.device} and {second.like.device})"
        )
    # A parameter that sets the dtype goes first, then the larger one.
    ours = first.dtype is not None, first.like.numel()
    theirs = second.dtype is not None, second.like.numel()
    return dtype, first.like if ours >= theirs else second.like


def _steps(inner: Axis, outer: Axis, result: Axis) -> tuple[int, int]:
    """Distance of the inner and of the outer taps on the lattice of the composition."""
    return (
        max(inner.dilation // result.dilation, 1),
        max(inner.stride * outer.dilation // result.dilation, 1),
    )
