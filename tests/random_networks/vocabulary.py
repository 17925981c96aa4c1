"""Modules and functions that random networks are made of, beside those of `torch.nn`.

Each is a spelling met in a real network. The sources that `programs.py` writes see all names here,
those of `untraceable.py`, `questions.py` and `state.py` included.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tests.random_networks import questions, state, untraceable
from tests.random_networks.questions import *  # noqa: F403  # the sources see them here
from tests.random_networks.state import *  # noqa: F403
from tests.random_networks.untraceable import *  # noqa: F403

__all__ = [
    "Adapted",
    "Attention",
    "BatchNormReLU1d",
    "BatchNormReLU2d",
    "Branches",
    "ConvNorm",
    "F",
    "FunctionalNorm",
    "LayerScale",
    "LinearNorm",
    "LowRank",
    "MergedKernel",
    "PlainConv2d",
    "Residual",
    "SqueezeExcite",
    "StandardisedConv2d",
    "nn",
    "pad_same",
    "prune",
    "spectral_norm",
    "torch",
    "weight_norm",
]
__all__ += questions.__all__
__all__ += state.__all__
__all__ += untraceable.__all__


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


class Adapted(nn.Module):
    """A layer with any number of low-rank updates, the active ones added up."""

    def __init__(self, base: nn.Module, rank: int, *active: str) -> None:
        super().__init__()
        self.base = base
        self.down = nn.ModuleDict({name: self._part(rank, last=False) for name in ("a", "b")})
        self.up = nn.ModuleDict({name: self._part(rank, last=True) for name in ("a", "b")})
        self.dropout = nn.ModuleDict({"a": nn.Dropout(0.1), "b": nn.Identity()})
        self.scaling = {"a": 0.5, "b": 2.0}
        self.active = active

    def _part(self, rank: int, last: bool) -> nn.Module:
        base = self.base
        if isinstance(base, nn.Linear):
            sizes = (rank, base.out_features) if last else (base.in_features, rank)
            return nn.Linear(*sizes, bias=False)
        assert isinstance(base, nn.Conv2d)
        if last:
            return nn.Conv2d(rank, base.out_channels, 1, bias=False)
        geometry = (base.kernel_size, base.stride, base.padding, base.dilation)
        return nn.Conv2d(base.in_channels, rank, *geometry, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result = self.base(x)
        for name in self.active:
            if name not in self.down:
                continue
            update = self.up[name](self.down[name](self.dropout[name](x)))
            result = result + update * self.scaling[name]
        return result


class Branches(nn.Module):
    """Parallel branches, added in a loop; those that are None are left out."""

    def __init__(self, *branches: nn.Module | None) -> None:
        super().__init__()
        self.branches = nn.ModuleList([b for b in branches if b is not None])
        self.activation = nn.ReLU(inplace=True) if None in branches else None

    def forward(self, x: Tensor) -> Tensor:
        out = 0
        for branch in self.branches:
            out += branch(x)
        return out if self.activation is None else self.activation(out)


class MergedKernel(nn.Module):
    """One convolution whose kernel is computed of several parameters."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int) -> None:
        super().__init__()
        self.dense = nn.Parameter(0.3 * torch.randn(c_out, c_in, kernel_size, kernel_size))
        self.point = nn.Parameter(0.3 * torch.randn(c_out, c_in, 1, 1))
        self.mixing = nn.Parameter(torch.randn(c_out, c_out))
        self.gain = nn.Parameter(torch.rand(c_out, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        side = self.dense.shape[-1] // 2
        kernel = self.dense + F.pad(self.point, [side] * 4)
        kernel = torch.einsum("oi,ihjk->ohjk", self.mixing, kernel) * self.gain.exp()
        return F.conv2d(x, kernel, padding=side)


class Attention(nn.Module):
    """Queries, keys and values from one linear layer, softmax, and a projection."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(features, 3 * features)
        self.project = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.project(weights @ v)


class PlainConv2d(nn.Conv2d):
    """A subclass that does the same as its parent."""


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


def pad_same(x: Tensor, kernel_size: int, stride: int) -> Tensor:
    """Pads as TensorFlow's "SAME" does: shape arithmetic that symbolic tracing cannot follow."""
    amounts = [max((-(-n // stride) - 1) * stride + kernel_size - n, 0) for n in x.shape[-2:]]
    if any(amounts):
        height, width = amounts
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
    return x
