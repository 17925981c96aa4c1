"""Scales and shifts around one operator: of a layer, of a residual, of the input."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.block import ONE_CONVOLUTION, Block, Refused, images, tokens
from tests.models.parts import convolution_norm
from tests.support.counting import OperatorCounts

C = 8


class LayerScale(nn.Module):
    """One factor per channel behind a residual's last layer (CaiT, arXiv 2103.17239, §2)."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.gamma = nn.Parameter(1e-5 * torch.ones(C))
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.gamma) if self.inplace else x * self.gamma


class ScaledMlp(nn.Module):
    """Two linear layers and a layer scale within a residual (CaiT, arXiv 2103.17239, §2)."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(C)
        self.layers = nn.Sequential(nn.Linear(C, 2 * C), nn.GELU(), nn.Linear(2 * C, C))
        self.scale = LayerScale(inplace)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.scale(self.layers(self.norm(x)))
        return result


class ConvNext(nn.Module):
    """Depthwise, then two linear layers with channels last (ConvNeXt, arXiv 2201.03545, §2)."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(C, C, 7, padding=3, groups=C)
        self.norm = nn.LayerNorm(C, eps=1e-6)
        self.up, self.down = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)
        self.gamma = nn.Parameter(1e-6 * torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class ReZero(nn.Module):
    """A residual with one factor, zero at first (ReZero, arXiv 2003.04887, §3)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(convolution_norm(C, C, 3), nn.ReLU(), convolution_norm(C, C, 3))
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.alpha * self.layers(x)
        return result


class SkipInit(nn.Module):
    """A constant and a learned factor, perhaps in place (SkipInit, arXiv 2002.10444, §3)."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(C, C, 3, padding=1)
        self.second = nn.Conv2d(C, C, 1)
        self.gain, self.alpha = nn.Parameter(torch.zeros(())), 0.2
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x)))
        if self.inplace:
            y.mul_(self.gain)
        else:
            y = y * self.gain
        return y * self.alpha + x


class VanillaBlock(nn.Module):
    """Two 1×1 whose activation was trained away, then a series of ones (2305.12972, §3)."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.first, self.second = convolution_norm(C, 12, 1), convolution_norm(12, C, 1)
        self.slope = slope
        self.pool = nn.MaxPool2d(2)
        self.series = nn.Parameter(0.1 * torch.randn(C, 1, 7, 7))
        self.norm = nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(x), self.slope)
        x = torch.relu(self.pool(self.second(x)))
        result: Tensor = self.norm(F.conv2d(x, self.series, padding=3, groups=C))
        return result


class Standardised(nn.Module):
    """An image less its mean, over its deviation, before a layer (ViT, arXiv 2010.11929, §3.1)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer((x - self.mean) / self.deviation)
        return result


class Rescaled(nn.Module):
    """An image between -1 and 1 before a layer (Inception-v3, arXiv 1512.00567, §6)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x * 2 - 1)
        return result


class WrittenOut(nn.LayerNorm):
    """LayerNorm as a norm, and a scale and a shift after it (arXiv 1607.06450, §3)."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x, self.normalized_shape, eps=self.eps)
        return x * self.weight + self.bias


class RootMeanSquare(nn.Module):
    """Channels over their root mean square, and a weight (RMSNorm, arXiv 1910.07467, §3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))


def before_linear(norm: Callable[[int], nn.Module]) -> Callable[[], nn.Module]:
    """A norm between two linear layers (pre-norm, arXiv 2002.04745, §3)."""
    return lambda: nn.Sequential(nn.Linear(4, C), norm(C), nn.Linear(C, 16))


EXPAND, REDUCE, AROUND_NORM = (2 * C, C), (C, 2 * C), ((C, 4), (16, C))

BLOCKS = [
    Block(
        "LayerScale",
        lambda: ScaledMlp(inplace=False),
        tokens(C),
        (EXPAND, REDUCE),
        OperatorCounts(additions=1),
    ),
    Block(
        "LayerScale, in place",
        lambda: ScaledMlp(inplace=True),
        tokens(C),
        (EXPAND, REDUCE),
        OperatorCounts(additions=1),
    ),
    Block(
        "ConvNeXt",
        ConvNext,
        images(C),
        ((C, 1, 7, 7), (4 * C, C), (C, 4 * C)),
        OperatorCounts(additions=1),
    ),
    Block("ReZero", ReZero, images(C), ((C, C, 3, 3),) * 2, OperatorCounts(additions=1)),
    Block(
        "SkipInit",
        lambda: SkipInit(inplace=False),
        images(C),
        ((C, C, 3, 3), (C, C, 1, 1)),
        OperatorCounts(additions=1),
    ),
    Block(
        "SkipInit, in place",
        lambda: SkipInit(inplace=True),
        images(C),
        ((C, C, 3, 3), (C, C, 1, 1)),
        OperatorCounts(additions=1),
    ),
    Block(
        "VanillaNet",
        lambda: VanillaBlock(slope=1),
        images(C),
        ((C, C, 1, 1), (C, 1, 7, 7)),
        by_hand=OperatorCounts(convolutions=2),
    ),
    # Until the slope is 1 there are two.
    Block(
        "VanillaNet, in training",
        lambda: VanillaBlock(slope=0.5),
        images(C),
        ((12, C, 1, 1), (C, 12, 1, 1), (C, 1, 7, 7)),
    ),
    Block(
        "image statistics before a patch embedding",
        lambda: Standardised(nn.Conv2d(3, C, 4, 4)),
        ((2, 3, 16, 12), (1, 3, 9, 7)),
        ((C, 3, 4, 4),),
        by_hand=ONE_CONVOLUTION,
    ),
    # The mean meets the border. The deviation could go into the kernel, but an image may be bytes:
    # then it would have to be converted instead.
    Block(
        "image statistics before a padded kernel",
        lambda: Standardised(nn.Conv2d(3, C, 3, padding=1)),
        images(3),
        ((C, 3, 3, 3),),
        OperatorCounts(additions=1, multiplications=1),
    ),
    # The factor before the shift could only go into the shift.
    Block(
        "image range before a padded kernel",
        lambda: Rescaled(nn.Conv2d(3, C, 3, padding=1)),
        images(3),
        ((C, 3, 3, 3),),
        OperatorCounts(additions=1, multiplications=1),
        refused=(Refused("layer", "zero padding after a bias"),),
    ),
    # What is within one operator stays there.
    Block("LayerNorm before a linear layer", before_linear(nn.LayerNorm), tokens(4), AROUND_NORM),
    Block("RMSNorm before a linear layer", before_linear(nn.RMSNorm), tokens(4), AROUND_NORM),
    Block(
        "LayerNorm, written out, before a linear layer",
        before_linear(WrittenOut),
        tokens(4),
        AROUND_NORM,
    ),
    # Written out its weight is a factor like any other; left are a sum and a product.
    Block(
        "RMSNorm, written out, before a linear layer",
        before_linear(RootMeanSquare),
        tokens(4),
        AROUND_NORM,
        OperatorCounts(additions=1, multiplications=1),
    ),
]
