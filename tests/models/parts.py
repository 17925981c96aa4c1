"""What most blocks are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def convolution(channels: int, out_channels: int, kernel: Any, **settings: Any) -> nn.Conv2d:
    """A convolution that keeps the size of its input at stride 1, without a bias."""
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    settings = {"padding": tuple(side // 2 for side in sides), "bias": False, **settings}
    return nn.Conv2d(channels, out_channels, kernel, **settings)


def convolution_norm(
    channels: int, out_channels: int, kernel: Any, **settings: Any
) -> nn.Sequential:
    """A convolution and its batch norm."""
    return nn.Sequential(
        convolution(channels, out_channels, kernel, **settings), nn.BatchNorm2d(out_channels)
    )


def depthwise(channels: int, kernel: Any, **settings: Any) -> nn.Conv2d:
    """A convolution of each channel by itself."""
    return convolution(channels, channels, kernel, groups=channels, **settings)


def depthwise_norm(channels: int, kernel: Any, **settings: Any) -> nn.Sequential:
    """A convolution of each channel by itself, and its batch norm."""
    return convolution_norm(channels, channels, kernel, groups=channels, **settings)


class SqueezeExcitation(nn.Module):
    """Channels are gated by their means (arXiv 1709.01507, §3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = torch.sigmoid(self.up(self.down(x.mean((2, 3), keepdim=True)).relu()))
        return x * gate


class Residual(nn.Module):
    """A part around which its input is added."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.part(x)
        return result
