"""RepVGG: a plain stack of 3×3 convolutions that is trained with parallel branches.

A block computes

    ReLU(BN(conv3×3(x)) + BN(conv1×1(x)) + BN(x))

where the last term is there if input and output have the same shape. In evaluation mode each term
is affine in x, so the sum equals one 3×3 convolution, which `reparam.fuse` finds from the graph:
there is one model here, without a second "deploy" form and without a switch between the two.

Modules carry the names of the authors' checkpoints (`stage1.0.rbr_dense.conv.weight`), so that
those load strictly.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from reparam import ReparamError

_REDUCTION = 16


@dataclass(frozen=True)
class RepVGGConfig:
    """The shape of a RepVGG network: a single block (stage 0) and four stages of blocks.

    Attributes:
        blocks: Number of blocks in stages 1 to 4.
        channels: Output channels of stages 0 to 4.
        strides: Stride of stages 0 to 4; the first block of a stage applies it.
        groups: Groups of every second 3×3 and 1×1 convolution, counted over the whole network.
        squeeze_excitation: Whether each block rescales its channels before the ReLU.

    Raises:
        ReparamError: If a length or a number does not fit.
    """

    blocks: tuple[int, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...] = (2, 2, 2, 2, 2)
    groups: int = 1
    squeeze_excitation: bool = False

    def __post_init__(self) -> None:
        for name, length in (("blocks", 4), ("channels", 5), ("strides", 5)):
            numbers = getattr(self, name)
            if len(numbers) != length:
                raise ReparamError(f"`{name}` needs {length} numbers, got {numbers!r}")
            for number in numbers:
                check_positive(name, number)
        check_positive("groups", self.groups)
        for channels in self.channels:
            if channels % self.groups:
                raise ReparamError(f"{channels} channels cannot be split into {self.groups} groups")
            if self.squeeze_excitation and channels < _REDUCTION:
                raise ReparamError(
                    f"squeeze-and-excitation divides the channels by {_REDUCTION}: "
                    f"a stage of {channels} has too few"
                )


def check_positive(name: str, value: object) -> None:
    """Refuses what is not a positive integer.

    Raises:
        ReparamError: Naming the argument and the value.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ReparamError(f"`{name}` must be a positive integer, got {value!r}")


class SqueezeExcitation(nn.Module):
    """Scales each channel by a factor between 0 and 1 that is computed from all channel means.

    Args:
        channels: Number of input and output channels.

    Shape:
        - Input: :math:`(N, C, H, W)`
        - Output: :math:`(N, C, H, W)`
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, channels // _REDUCTION, kernel_size=1)
        self.up = nn.Conv2d(channels // _REDUCTION, channels, kernel_size=1)

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
    ) -> None:
        super().__init__()
        self.rbr_dense = _conv_norm(in_channels, out_channels, 3, stride, groups)
        self.rbr_1x1 = _conv_norm(in_channels, out_channels, 1, stride, groups)
        keeps_shape = stride == 1 and in_channels == out_channels
        self.rbr_identity = nn.BatchNorm2d(out_channels) if keeps_shape else None
        self.se = SqueezeExcitation(out_channels) if squeeze_excitation else None

    def forward(self, x: Tensor) -> Tensor:
        """Adds up the branches."""
        total = self.rbr_dense(x) + self.rbr_1x1(x)
        if self.rbr_identity is not None:
            total = total + self.rbr_identity(x)
        if self.se is not None:
            total = self.se(total)
        return functional.relu(total)


class RepVGG(nn.Module):
    r"""A RepVGG classifier.

    Args:
        config: The shape of the network.
        num_classes: Number of classes.
        in_chans: Number of channels of the images.

    Shape:
        - Input: :math:`(N, in\_chans, H, W)`
        - Output: :math:`(N, num\_classes)`, the logits

    Raises:
        ReparamError: If `num_classes` or `in_chans` is not a positive integer.
    """

    def __init__(self, config: RepVGGConfig, *, num_classes: int = 1000, in_chans: int = 3) -> None:
        super().__init__()
        check_positive("num_classes", num_classes)
        check_positive("in_chans", in_chans)
        self.config = config
        self.stage0 = RepVGGBlock(
            in_chans,
            config.channels[0],
            stride=config.strides[0],
            squeeze_excitation=config.squeeze_excitation,
        )
        self.stage1 = _stage(config, 1)
        self.stage2 = _stage(config, 2)
        self.stage3 = _stage(config, 3)
        self.stage4 = _stage(config, 4)
        self.linear = nn.Linear(config.channels[4], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Computes the logits."""
        x = self.stage0(x)
        x = self.stage1(x)
        x = self.stage2(x)
        x = self.stage3(x)
        x = self.stage4(x)
        x = functional.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: Tensor = self.linear(x)
        return logits


def _conv_norm(
    in_channels: int, out_channels: int, kernel_size: int, stride: int, groups: int
) -> nn.Sequential:
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


def _stage(config: RepVGGConfig, index: int) -> nn.Sequential:
    in_channels, out_channels = config.channels[index - 1 : index + 1]
    first_layer = 1 + sum(config.blocks[: index - 1])
    blocks = [
        RepVGGBlock(
            out_channels if position else in_channels,
            out_channels,
            stride=1 if position else config.strides[index],
            # Grouping all blocks would keep the groups apart through the whole network.
            groups=1 if (first_layer + position) % 2 else config.groups,
            squeeze_excitation=config.squeeze_excitation,
        )
        for position in range(config.blocks[index - 1])
    ]
    return nn.Sequential(*blocks)
