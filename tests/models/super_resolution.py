"""Super-resolution: edge filters and wide 1×1 around 3×3, padded with their own bias."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.block import ONE_CONVOLUTION, Block, Refused, images
from tests.models.parts import convolution
from tests.support.counting import OperatorCounts

C = 8

SOBEL = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
LAPLACE = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
EDGES = (SOBEL, SOBEL.t(), LAPLACE)


def pad_with(x: Tensor, value: Tensor) -> Tensor:
    """A border of one number per channel."""
    value = value.view(1, -1, 1, 1)
    x = F.pad(x, (1, 1, 1, 1), "constant", 0)
    x[:, :, 0:1, :] = value
    x[:, :, -1:, :] = value
    x[:, :, :, 0:1] = value
    x[:, :, :, -1:] = value
    return x


class PointAndKernel(nn.Module):
    """1×1 and then 3×3, padded between with the bias of the first (ECBSR, ACM MM 2021, §3)."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.point, self.kernel = nn.Conv2d(C, inner, 1), nn.Conv2d(inner, C, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.point.weight, self.point.bias, stride=1)
        y = pad_with(y, self.point.bias)
        return F.conv2d(y, self.kernel.weight, self.kernel.bias, stride=1)

    def merged(self) -> tuple[Tensor, Tensor]:
        """Its one kernel and bias, computed by convolutions."""
        first, second = self.point, self.kernel
        kernel = F.conv2d(second.weight, first.weight.permute(1, 0, 2, 3))
        bias = torch.ones(1, first.out_channels, 3, 3) * first.bias.view(1, -1, 1, 1)
        return kernel, F.conv2d(bias, second.weight).view(-1) + second.bias


class PointAndEdge(nn.Module):
    """1×1 and then a scaled edge filter (ECBSR, ACM MM 2021, §3)."""

    def __init__(self, edge: Tensor) -> None:
        super().__init__()
        self.point = nn.Conv2d(C, C, 1)
        self.scale = nn.Parameter(torch.randn(C, 1, 1, 1) * 1e-3)
        self.bias = nn.Parameter(torch.randn(C) * 1e-3)
        self.mask = nn.Parameter(edge.repeat(C, 1, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.point.weight, self.point.bias, stride=1)
        y = pad_with(y, self.point.bias)
        return F.conv2d(y, self.scale * self.mask, self.bias, stride=1, groups=C)

    def merged(self) -> tuple[Tensor, Tensor]:
        """Its one kernel and bias, the depthwise filter written into a dense one."""
        depthwise, first = self.scale * self.mask, self.point
        dense = torch.zeros(C, C, 3, 3, dtype=depthwise.dtype, device=depthwise.device)
        for channel in range(C):
            dense[channel, channel, :, :] = depthwise[channel, 0, :, :]
        kernel = F.conv2d(dense, first.weight.permute(1, 0, 2, 3))
        bias = torch.ones(1, C, 3, 3, dtype=dense.dtype) * first.bias.view(1, -1, 1, 1)
        return kernel, F.conv2d(bias, dense).view(-1) + self.bias


class EdgeOriented(nn.Module):
    """3×3, 1×1 then 3×3, and three edge filters (ECBSR, ACM MM 2021, §3)."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Conv2d(C, C, 3, padding=1)
        self.expanded = PointAndKernel(2 * C)
        self.edges = nn.ModuleList(PointAndEdge(edge) for edge in EDGES)
        self.act = nn.PReLU(C)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.expanded(x)
        for edge in self.edges:
            y += edge(x)
        result: Tensor = self.act(y)
        return result


class EdgeOrientedKernel(EdgeOriented):
    """The same, merged by every forward in evaluation mode (ECBSR, ACM MM 2021, §3)."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        kernel, bias = self.dense.weight, self.dense.bias
        for branch in (self.expanded, *self.edges):
            branch_kernel, branch_bias = branch.merged()
            kernel, bias = kernel + branch_kernel, bias + branch_bias
        result: Tensor = self.act(F.conv2d(x, kernel, bias, stride=1, padding=1))
        return result


class ExpandAndSqueeze(nn.Module):
    """Two wide 3×3 with batch norm and 1×1, and the identity (RepSR, arXiv 2205.05671, §3)."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(convolution(C, 2 * C, 3), nn.BatchNorm2d(2 * C), nn.Conv2d(2 * C, C, 1))
            for _ in range(2)
        )
        self.act = nn.PReLU(C)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for branch in self.branches:
            y = y + branch(x)
        result: Tensor = self.act(y)
        return result


class ThreeInARow(nn.Module):
    """1×1, 3×3, 1×1 on a padded input, beside 1×1 (SPAN, arXiv 2311.12770, §3)."""

    def __init__(self) -> None:
        super().__init__()
        self.sequence = nn.Sequential(
            nn.Conv2d(C, 2 * C, 1), nn.Conv2d(2 * C, 2 * C, 3), nn.Conv2d(2 * C, C, 1)
        )
        self.skip = nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1), "constant", 0)
        return F.leaky_relu(self.sequence(padded) + self.skip(x), negative_slope=0.05)


class ThreeInARowKernel(ThreeInARow):
    """The same, merged into another layer's weight by every forward (SPAN, 2311.12770, §3)."""

    def __init__(self) -> None:
        super().__init__()
        self.merged = nn.Conv2d(C, C, 3, padding=1).requires_grad_(False)

    def merge(self) -> None:
        first, second, third = self.sequence
        kernel = F.conv2d(first.weight.flip(2, 3).permute(1, 0, 2, 3), second.weight, padding=2)
        kernel = kernel.flip(2, 3).permute(1, 0, 2, 3)
        bias = (second.weight * first.bias.reshape(1, -1, 1, 1)).sum((1, 2, 3)) + second.bias
        outer = third.weight
        kernel = F.conv2d(kernel.flip(2, 3).permute(1, 0, 2, 3), outer)
        kernel = kernel.flip(2, 3).permute(1, 0, 2, 3)
        bias = (outer * bias.reshape(1, -1, 1, 1)).sum((1, 2, 3)) + third.bias
        self.merged.weight.data = kernel + F.pad(self.skip.weight, [1, 1, 1, 1])
        self.merged.bias.data = bias + self.skip.bias

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        self.merge()
        return F.leaky_relu(self.merged(x), negative_slope=0.05)


class ResidualInResidual(nn.Module):
    """A wide 3×3 with two shortcuts between two 1×1 (FMEN, arXiv 2204.08397, §3)."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(C, 2 * C, 1)
        self.feature = nn.Conv2d(2 * C, 2 * C, 3)
        self.reduce = nn.Conv2d(2 * C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.expand(x)
        y = self.feature(pad_with(wide, self.expand.bias)) + wide
        y = self.reduce(y)
        y += x
        return F.leaky_relu(y, 0.1)


class NormBeforeKernel(nn.Module):
    """An activation, a batch norm, and a padded 3×3 (FMEN, arXiv 2204.08397, §3)."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(C, C, 3, padding=1)
        self.norm = nn.BatchNorm2d(C)
        self.excite = nn.Conv2d(C, C, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.squeeze(x), 0.1)
        return torch.sigmoid(self.excite(self.norm(y))) * x


THREE = ((C, C, 3, 3),)

BLOCKS = [
    Block(
        "ECB, branches",
        EdgeOriented,
        images(C),
        THREE,
        by_hand=ONE_CONVOLUTION,
    ),
    Block(
        "ECB, kernel",
        EdgeOrientedKernel,
        images(C),
        THREE,
        by_hand=ONE_CONVOLUTION,
    ),
    Block("RepSR", ExpandAndSqueeze, images(C), THREE, by_hand=ONE_CONVOLUTION),
    Block("SPAN, branches", ThreeInARow, images(C), THREE, by_hand=ONE_CONVOLUTION),
    Block("SPAN, kernel", ThreeInARowKernel, images(C), THREE, by_hand=ONE_CONVOLUTION),
    Block(
        "FMEN, PlainUSR",
        ResidualInResidual,
        images(C),
        THREE,
        by_hand=ONE_CONVOLUTION,
    ),
    Block(
        "FMEN, batch norm before a padded kernel",
        NormBeforeKernel,
        images(C),
        THREE * 2,
        OperatorCounts(batch_norms=1, multiplications=1),
        refused=(Refused("excite", "zero padding after a bias"),),
    ),
]
