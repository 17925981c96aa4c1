r"""Normalisations: a scale and a shift behind one go into its own weight and bias.

A norm by statistics of its input is not affine, but what it ends with is::

    s * (w * n(x) + b) + c = (s w) * n(x) + (s b + c)

A batch norm is affine, so that it computes any scale and shift, whatever statistics it keeps::

    s * x + c = w * (x - mean) / sqrt(variance + eps) + b
        with  w = s sqrt(variance + eps),  b = c + s mean

The other way round, a norm may leave its weight and bias to what reads it, and be bare::

    A(w * n(x) + b) = (A w) * n(x) + A b
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reparam.algebra.affine import AffineConv
from reparam.algebra.axis_composition import Axis
from reparam.algebra.expressions import evaluate
from reparam.algebra.kernels import Lazy, Weights, exact
from reparam.errors import Refusal


@dataclass(frozen=True, eq=False)
class Norm:
    """A normalisation that may get another weight and bias, one entry per channel.

    Args:
        kind: What it is called.
        make: Makes its module on the meta device, with a weight or without any.
        channels: How many channels it has.
        eps: What is added to its variance.
        buffers: The statistics that it keeps and what else it holds, by name; none if it is no
            batch norm.
        takes_constant: Whether it has a bias.
        bare: Whether it has neither weight nor bias, whatever it is given.
    """

    kind: str
    make: Callable[[bool], nn.Module]
    channels: int
    eps: float | None = None
    buffers: tuple[tuple[str, Tensor], ...] = ()
    takes_constant: bool = True
    bare: bool = False

    @property
    def affine(self) -> bool:
        """Whether its value is affine over what it reads: it keeps its statistics."""
        return bool(self.buffers)

    def stripped(self) -> Norm:
        """The same norm without a weight and a bias."""
        return replace(self, bare=True)

    def module(self, factor: Tensor, constant: Tensor | None) -> nn.Module:
        """Its module, in float64.

        If it is affine, it scales and shifts what it reads by these, else what it has normalised.
        """
        module = self.make(not self.bare).eval()
        for name, value in self.tensors(factor, constant).items():
            if name in ("weight", "bias"):
                module.register_parameter(name, nn.Parameter(value, requires_grad=False))
            else:
                module.register_buffer(name, value)
        return module

    def tensors(
        self,
        factor: Tensor,
        constant: Tensor | None,
        read: Callable[[Any], Any] = evaluate,
    ) -> dict[str, Tensor]:
        """The weight, the bias and the statistics of its module, in float64, by name.

        What stands for the statistics is read as by `Lazy.evaluate`.
        """
        if self.bare:
            return {}
        held: dict[str, Tensor] = {}
        for name, tensor in self.buffers:
            value = read(tensor)
            held[name] = exact(value) if value.is_floating_point() else value.clone()
        weight, bias = factor, constant
        if self.affine:
            mean, variance = held["running_mean"], held["running_var"]
            weight = factor * (variance + (self.eps or 0.0)).sqrt()
            bias = factor * mean if constant is None else constant + factor * mean
        return held | {"weight": weight} | ({} if bias is None else {"bias": bias})

    def over(self, stand_in: Callable[[Any], Any]) -> Norm:
        """The same norm, with other things in place of its statistics."""
        return replace(self, buffers=tuple((name, stand_in(value)) for name, value in self.buffers))


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def batch_norm(
    held: Mapping[str, Tensor], axes: int, eps: float, momentum: float | None = 0.1
) -> Norm:
    """A batch norm with so many axes after its channels, that holds some statistics."""
    channels = held["running_mean"].numel()
    make = partial(_batch_norm, axes, channels, eps, momentum)
    return Norm("batch norm", make, channels, eps, tuple(held.items()))


def _batch_norm(
    axes: int, channels: int, eps: float, momentum: float | None, affine: bool
) -> nn.Module:
    module = _BATCH_NORMS[axes](channels, eps, momentum, affine, device="meta")
    module.register_buffer("num_batches_tracked", None)
    return module


def layer_norm(channels: int, eps: float) -> Norm:
    """A layer norm over the last axis."""
    return Norm("layer norm", partial(_layer_norm, channels, eps), channels)


def _layer_norm(channels: int, eps: float, affine: bool) -> nn.Module:
    return nn.LayerNorm(channels, eps, affine, bias=False, device="meta")


def rms_norm(channels: int, eps: float | None) -> Norm:
    """A norm by the root mean square over the last axis."""
    return Norm("RMS norm", partial(_rms_norm, channels, eps), channels, takes_constant=False)


def _rms_norm(channels: int, eps: float | None, affine: bool) -> nn.Module:
    return nn.RMSNorm(channels, eps, affine, device="meta")


def group_norm(groups: int, channels: int, eps: float) -> Norm:
    """A norm over groups of channels."""
    return Norm("group norm", partial(_group_norm, groups, channels, eps), channels)


def _group_norm(groups: int, channels: int, eps: float, affine: bool) -> nn.Module:
    module = nn.GroupNorm(groups, channels, eps, affine, device="meta")
    module.register_parameter("bias", None)
    return module


_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def instance_norm(channels: int, axes: int, eps: float) -> Norm:
    """A norm of each channel by itself, over the 1 to 3 axes after it."""
    return Norm("instance norm", partial(_instance_norm, channels, axes, eps), channels)


def _instance_norm(channels: int, axes: int, eps: float, affine: bool) -> nn.Module:
    module = _INSTANCE_NORMS[axes - 1](channels, eps, affine=affine, device="meta")
    module.register_parameter("bias", None)
    return module


def ending(
    x: AffineConv, weight: Tensor | None, bias: Tensor | None, channels: int, axis: int
) -> AffineConv | Refusal:
    """The scale and the shift that a norm of a value ends with, as if nothing were before them.

    The axis is that of the channels, counted from the end.
    """
    count = -1 - axis
    like = bias if weight is None else weight
    form = AffineConv(
        Lazy(partial(_ending, channels, count), (), (weight, bias)),
        (Axis(),) * count,
        channels,
        channels,
        channels,
        bias is not None,
        dtype=None if like is None else like.dtype,
        like=like,
    )
    return x.then(form)


def _ending(channels: int, axes: int, weight: Tensor | None, bias: Tensor | None) -> Weights:
    factor = torch.ones(channels, dtype=torch.float64) if weight is None else exact(weight)
    return factor.view(-1, 1, *(1,) * axes), None if bias is None else exact(bias)
