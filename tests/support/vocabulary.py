"""Modules and functions that random networks are made of, beside those of `torch.nn`.

Each is a spelling met in a real network. The sources that `programs.py` writes see all names here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

__all__ = [
    "BatchNormReLU1d",
    "BatchNormReLU2d",
    "ConvNorm",
    "EvenWidth",
    "F",
    "FunctionalNorm",
    "LayerScale",
    "LinearNorm",
    "LowRank",
    "Residual",
    "SqueezeExcite",
    "StandardisedConv2d",
    "nn",
    "pad_same",
    "spectral_norm",
    "torch",
    "weight_norm",
]


class BatchNormReLU1d(nn.BatchNorm1d):
    """A subclass that does more than its parent."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class BatchNormReLU2d(nn.BatchNorm2d):
    """A subclass that does more than its parent, with the parent's formula written out."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )
        return y.relu_()


class FunctionalNorm(nn.Module):
    """Batch norm without `nn.BatchNorm`, every argument by keyword."""

    def __init__(self, channels: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            input=x,
            running_var=self.running_var,
            running_mean=self.running_mean,
            weight=self.weight,
            eps=self.eps,
            training=self.training,
        )


class LayerScale(nn.Module):
    """A factor per channel; `shape` is (C, 1, 1) for images and (C,) for tokens."""

    def __init__(self, *shape: int, inplace: bool = False) -> None:
        super().__init__()
        self.gamma = nn.Parameter(0.5 * torch.ones(shape))
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.gamma) if self.inplace else x * self.gamma


class ConvNorm(nn.Sequential):
    """A sequence with names of its own."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int = 1, groups: int = 1) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.add_module(
            "c", nn.Conv2d(c_in, c_out, kernel_size, 1, padding, groups=groups, bias=False)
        )
        self.add_module("bn", nn.BatchNorm2d(c_out))


class LinearNorm(nn.Module):
    """Batch norm over the flattened tokens."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(c_in, c_out, bias=False)
        self.bn = nn.BatchNorm1d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.bn(x.flatten(0, 1)).reshape_as(x)


class LowRank(nn.Module):
    """A linear layer with a low-rank update."""

    def __init__(self, c_in: int, c_out: int, scale: float = 0.5) -> None:
        super().__init__()
        self.base = nn.Linear(c_in, c_out)
        self.down = nn.Linear(c_in, 2, bias=False)
        self.up = nn.Linear(2, c_out, bias=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x)) * self.scale


class Residual(nn.Module):
    """The input plus what a module makes of it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.m = module

    def forward(self, x: Tensor) -> Tensor:
        return x + self.m(x)


class SqueezeExcite(nn.Module):
    """A gate per channel, computed from the mean over the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, 3, 1)
        self.expand = nn.Conv2d(3, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)), inplace=True))
        return x * gate.sigmoid()


class StandardisedConv2d(nn.Conv2d):
    """The kernel is computed from the parameter whenever `forward` runs."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.flatten(1).norm(dim=1)[:, None, None, None] + 1e-3)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class EvenWidth(nn.Module):
    """Control flow that symbolic tracing cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1))
        return x


def pad_same(x: Tensor, kernel_size: int, stride: int) -> Tensor:
    """Pads as TensorFlow's "SAME" does: shape arithmetic that symbolic tracing cannot follow."""
    amounts = [max((-(-n // stride) - 1) * stride + kernel_size - n, 0) for n in x.shape[-2:]]
    if any(amounts):
        height, width = amounts
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
    return x
