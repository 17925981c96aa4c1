"""The block of RepVGG, a sum of branches before one ReLU, and squeeze-and-excitation."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

REDUCTION = 16
"""How many times squeeze-and-excitation before the ReLU reduces the channels."""

POST_REDUCTION = 4
"""How many times squeeze-and-excitation after the ReLU reduces the channels."""


def conv_norm(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Builds a convolution that keeps the size, stride apart, and its batch norm."""
    conv = nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        groups=groups,
        bias=False,
    )
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels)))


class SqueezeExcitation(nn.Module):
    """Scales each channel by a factor between 0 and 1 that is computed from all channel means.

    Args:
        channels: Number of input and output channels.
        reduction: How many times fewer channels stand between the two 1×1 convolutions.

    Shape:
        - Input: :math:`(N, C, H, W)`
        - Output: :math:`(N, C, H, W)`
    """

    def __init__(self, channels: int, reduction: int = REDUCTION) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, channels // reduction, kernel_size=1)
        self.up = nn.Conv2d(channels // reduction, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Scales the channels."""
        means = functional.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.up(functional.relu(self.down(means))))


class RepVGGBlock(nn.Module):
    r"""A 3×3 convolution, a 1×1 convolution and, where shapes allow, the identity, summed.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        stride: Stride of both convolutions.
        groups: Groups of both convolutions.
        squeeze_excitation: Whether `SqueezeExcitation` stands between the sum and the ReLU.
        post_squeeze_excitation: Whether `SqueezeExcitation` stands after the ReLU.

    Shape:
        - Input: :math:`(N, C_{in}, H, W)`
        - Output: :math:`(N, C_{out}, \lceil H / stride \rceil, \lceil W / stride \rceil)`
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        groups: int = 1,
        squeeze_excitation: bool = False,
        post_squeeze_excitation: bool = False,
    ) -> None:
        super().__init__()
        self.rbr_dense = conv_norm(in_channels, out_channels, 3, stride, groups)
        self.rbr_1x1 = conv_norm(in_channels, out_channels, 1, stride, groups)
        keeps_shape = stride == 1 and in_channels == out_channels
        self.rbr_identity = nn.BatchNorm2d(out_channels) if keeps_shape else None
        self.se = SqueezeExcitation(out_channels) if squeeze_excitation else None
        self.post_se = (
            SqueezeExcitation(out_channels, POST_REDUCTION) if post_squeeze_excitation else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Adds up the branches."""
        total = self.rbr_dense(x) + self.rbr_1x1(x)
        if self.rbr_identity is not None:
            total = total + self.rbr_identity(x)
        if self.se is not None:
            total = self.se(total)
        out = functional.relu(total)
        return out if self.post_se is None else self.post_se(out)
