"""A layer with branches beside it, and its rule: their sum is one form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reparam.algebra import AffineConv
from reparam.errors import Refusal
from reparam.rules import register_rule, registered_rules


class ChannelScale(nn.Module):
    """One factor per channel.

    Args:
        channels: How many channels there are.
        axes: How many axes come after that of the channels.
        start: What the factors start at.
        trained: Whether they are a parameter, and no buffer.

    Shape:
        ``(..., channels, *axes)`` in and out.
    """

    weight: Tensor

    def __init__(
        self,
        channels: int,
        axes: int,
        start: float = 1.0,
        *,
        trained: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.axes = axes
        weight = torch.full((channels,), start, device=device, dtype=dtype)
        if trained:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply every channel by its factor."""
        return x * self.weight.view(-1, *(1,) * self.axes)


class ExpandedLayer(nn.Module):
    """The sum of a layer and of branches, each a sequence of layers; `reparam.expand` makes it.

    What a convolution or a linear layer says of itself, such as its stride, this says too; it has
    no weight, since that is what all branches make together.

    Args:
        main: The main branch.
        branches: The others.

    Shape:
        That of the main branch.
    """

    def __init__(self, main: nn.Sequential, branches: Iterable[nn.Sequential]) -> None:
        super().__init__()
        self.main = main
        self.branches = nn.ModuleList(branches)

    @property
    def main_layer(self) -> nn.Module:
        """The layer that the branches stand beside."""
        (layer, *_) = self.main
        return layer

    def sequences(self) -> list[nn.Sequential]:
        """The branches besides the main one."""
        return [branch for branch in self.branches if isinstance(branch, nn.Sequential)]

    def forward(self, input: Tensor) -> Tensor:
        """The sum of all branches."""
        total: Tensor = self.main(input)
        for branch in self.branches:
            total = total + branch(input)
        return total

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            layer = self.main_layer if "main" in self._modules else None
            value = getattr(layer, name, Ellipsis)
            if isinstance(value, int | str | tuple | None):
                return value
            raise AttributeError(
                f"an expanded layer has no {name!r}: its weights are those of its branches"
            ) from None


@register_rule(ChannelScale)
def channel_scale(module: ChannelScale, x: AffineConv) -> AffineConv | Refusal:
    """One factor per channel."""
    return x.scale(module.weight, axis=-1 - module.axes)


@register_rule(ExpandedLayer)
def sum_of_branches(module: ExpandedLayer, x: AffineConv) -> Any:
    """The sum of sequences of layers."""
    total: Any = in_a_row(module.main, x)
    for branch in module.sequences():
        if isinstance(total, Refusal):
            return total
        form = in_a_row(branch, x)
        total = form if isinstance(form, Refusal) else total.plus(form)
    return total


def in_a_row(layers: Iterable[nn.Module], x: AffineConv) -> AffineConv | Refusal:
    """The form of a sequence of layers."""
    rules = registered_rules()
    form: Any = x
    for layer in layers:
        if isinstance(layer, _BatchNorm):
            form = _normalized(layer, form)
        else:
            rule = rules.get(type(layer))
            unknown = Refusal(f"a {type(layer).__name__} in a branch has no rule")
            form = unknown if rule is None else rule(layer, form)
        if isinstance(form, Refusal):
            return form
    result: AffineConv = form
    return result


def _normalized(norm: _BatchNorm, form: AffineConv) -> AffineConv | Refusal:
    """A norm of images of as many axes as its class says, in a branch of a convolution."""
    if norm.training or norm.running_mean is None or norm.running_var is None:
        return Refusal("it normalises by the statistics of the batch")
    axes = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}.get(type(norm))
    if axes is None:
        return Refusal(f"a {type(norm).__name__} in a branch has no rule")
    return form.normalize(
        norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps, -1 - axes
    )
