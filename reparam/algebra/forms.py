"""What an affine form is: a specification without tensors, and weights on demand."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Self

import torch
from torch import Tensor

from reparam.algebra.axis_composition import Axis
from reparam.algebra.kernels import Lazy, Weights
from reparam.errors import Refusal


@dataclass(frozen=True, slots=True)
class Columns:
    """The channels that a form reads, in this order, where these are not all of its base's."""

    indices: tuple[int, ...]
    total: int


@dataclass(frozen=True, eq=False)
class Form:
    """One convolution of one base, plus a constant per channel.

    Args:
        weights: Kernel and bias, computed on demand.
        axes: One entry per spatial axis; empty for a linear layer over the last axis; None for a
            pointwise form that holds for any number of axes.
        in_channels: Channels of the base that are read; None if the form holds for any number.
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
        columns: The channels of the base that are read; None if all are.
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
    columns: Columns | None = None
    base: Hashable = None

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

    def beside(self, other: Form) -> Self | Refusal:
        """Adopt the number of spatial axes of a neighbour."""
        if self.axes is None and other.axes is not None:
            return self.with_axes(len(other.axes))
        if self.axes is not None and other.axes is not None and len(self.axes) != len(other.axes):
            return Refusal(
                f"operators over {len(self.axes)} and {len(other.axes)} spatial axes: their "
                "channels lie along different axes"
            )
        return self

    def with_axes(self, count: int) -> Self:
        """The same pointwise form for another number of spatial axes."""
        if self.axes is not None and len(self.axes) == count:
            return self
        weights = Lazy(partial(_over_axes, count), (self.weights,))
        return replace(self, axes=(Axis(),) * count, weights=weights)

    def with_channels(self, channels: int | None) -> Self:
        """The same depthwise form for a known number of channels."""
        if self.groups is not None or channels is None:
            return self
        return replace(
            self,
            in_channels=channels,
            out_channels=channels,
            groups=channels,
            weights=Lazy(partial(_widened, channels), (self.weights,)),
        )


def _over_axes(count: int, weights: Weights) -> Weights:
    kernel, bias = weights
    return kernel.view(*kernel.shape[:2], *(1,) * count), bias


def _widened(channels: int, weights: Weights) -> Weights:
    kernel, bias = weights
    kernel = kernel.expand(channels, *kernel.shape[1:]).contiguous()
    return kernel, None if bias is None else bias.expand(channels).clone()


def weights_dtype(form: Form) -> torch.dtype | None:
    """The type that the weights of a form will be rounded to in the end, where known."""
    return form.dtype or (None if form.like is None else form.like.dtype)
