"""Kernels that every forward computes from parameters: they are constants."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tests.models.block import ONE_CONVOLUTION, ONE_LINEAR, Block, images, tokens

C = 8


def cosines(channels: int, size: int) -> Tensor:
    """For each channel one wave of a discrete cosine transform, in the first half along rows."""
    position = (torch.arange(size) + 0.5) * torch.pi / size
    waves = torch.cos(position * (torch.arange(channels) % (channels // 2) + 1)[:, None])
    rows, columns = waves[: channels // 2], waves[channels // 2 :]
    return torch.cat(
        [rows[:, :, None].expand(-1, -1, size), columns[:, None, :].expand(-1, size, -1)]
    )


class OnlineReparameterised(nn.Module):
    """Six kernels, scaled per channel and added before the convolution (2204.00826, §3)."""

    def __init__(self, kernel: int = 3) -> None:
        super().__init__()
        self.kernel = kernel
        self.origin = nn.Parameter(torch.randn(C, C, kernel, kernel))
        self.point = nn.Parameter(torch.randn(C, C, 1, 1))
        self.average = nn.Parameter(torch.randn(C, C, 1, 1))
        self.frequency = nn.Parameter(torch.randn(C, C, 1, 1))
        self.first = nn.Parameter(torch.zeros(C, C, 1, 1))
        self.second = nn.Parameter(torch.randn(C, C, kernel, kernel))
        self.depthwise = nn.Parameter(torch.randn(2 * C, 1, kernel, kernel))
        self.pointwise = nn.Parameter(torch.randn(C, 2 * C, 1, 1))
        self.scales = nn.Parameter(torch.randn(6, C))
        self.register_buffer("identity", torch.eye(C)[:, :, None, None])
        self.register_buffer("pool", torch.full((kernel, kernel), 1 / kernel**2))
        self.register_buffer("waves", cosines(C, kernel))
        self.norm = nn.BatchNorm2d(C)

    def weight(self) -> Tensor:
        first = (self.first + self.identity).squeeze(3).squeeze(2)
        depthwise = self.depthwise.view(C, 2, self.kernel, self.kernel)
        kernels = (
            self.origin,
            F.pad(self.point, [self.kernel // 2] * 4),
            torch.einsum("oi,hw->oihw", self.average.squeeze(3).squeeze(2), self.pool),
            torch.einsum("oi,ihw->oihw", self.frequency.squeeze(3).squeeze(2), self.waves),
            torch.einsum("ti,othw->oihw", first, self.second),
            torch.einsum("oit,ithw->oihw", self.pointwise.view(C, C, 2), depthwise),
        )
        weight = torch.zeros_like(self.origin)
        for index, kernel in enumerate(kernels):
            weight = weight + torch.einsum("oihw,o->oihw", kernel, self.scales[index, :])
        return weight

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.weight(), None, stride=1, padding=self.kernel // 2)
        return torch.relu(self.norm(y))


class StandardisedConv2d(nn.Conv2d):
    """A kernel of mean zero and variance one per channel (arXiv 1903.10520, §3)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        weight = weight - weight.mean(dim=(1, 2, 3), keepdim=True)
        deviation = weight.flatten(1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
        weight = weight / deviation.expand_as(weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ScaledStandardisedConv2d(nn.Conv2d):
    """The same by a batch norm over the kernel, with a gain (NF-ResNet, arXiv 2101.08692, §4)."""

    def __init__(self, *args: int, **settings: int) -> None:
        super().__init__(*args, **settings)  # type: ignore[arg-type]
        self.gain = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), 1.0))

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1),
            None,
            None,
            weight=(self.gain * 0.1).view(-1),
            training=True,
            momentum=0.0,
        ).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def normed(conv: nn.Module) -> nn.Module:
    """A convolution and its batch norm."""
    return nn.Sequential(conv, nn.BatchNorm2d(C))


def weight_normed_pair() -> nn.Module:
    """A direction and a length in place of a weight (weight norm, arXiv 1602.07868, §2)."""
    return nn.Sequential(weight_norm(nn.Linear(C, 16)), weight_norm(nn.Linear(16, C)))


THREE = ((C, C, 3, 3),)

BLOCKS = [
    Block("OREPA", OnlineReparameterised, images(C), THREE, by_hand=ONE_CONVOLUTION),
    Block("OREPA, 5x5", lambda: OnlineReparameterised(5), images(C), ((C, C, 5, 5),)),
    Block(
        "weight standardisation",
        lambda: normed(StandardisedConv2d(C, C, 3, padding=1)),
        images(C),
        THREE,
    ),
    Block(
        "scaled weight standardisation",
        lambda: normed(ScaledStandardisedConv2d(C, C, 3, padding=1)),
        images(C),
        THREE,
    ),
    Block(
        "weight norm",
        lambda: normed(weight_norm(nn.Conv2d(C, C, 3, padding=1))),
        images(C),
        THREE,
    ),
    Block("weight norm, linear", weight_normed_pair, tokens(C), ((C, C),), by_hand=ONE_LINEAR),
    # The largest singular value of a kernel, by power iteration (arXiv 1802.05957, §2)
    Block(
        "spectral norm",
        lambda: normed(spectral_norm(nn.Conv2d(C, C, 3, padding=1))),
        images(C),
        THREE,
    ),
]
