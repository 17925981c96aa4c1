"""Large kernels, and the smaller ones that they are trained with; all depthwise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.block import ONE_CONVOLUTION, Block, images
from tests.models.parts import depthwise, depthwise_norm
from tests.support.counting import OperatorCounts

C = 4


class LargeKernel(nn.Module):
    """A large kernel and a small one (RepLKNet, arXiv 2203.06717, §3)."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = depthwise_norm(C, 31), depthwise_norm(C, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.large(x)
        y += self.small(x)
        return torch.relu(y)


class DilatedBranches(nn.Module):
    """A large kernel and dilated ones of equal or lesser reach (UniRepLKNet, 2311.15599, §3.1)."""

    branches = ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5))

    def __init__(self) -> None:
        super().__init__()
        self.large, self.large_norm = depthwise(C, 13), nn.BatchNorm2d(C)
        for kernel, dilation in self.branches:
            padding = dilation * (kernel - 1) // 2
            branch = depthwise(C, kernel, dilation=dilation, padding=padding)
            setattr(self, f"kernel_{kernel}_{dilation}", branch)
            setattr(self, f"norm_{kernel}_{dilation}", nn.BatchNorm2d(C))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.large_norm(self.large(x))
        for kernel, dilation in self.branches:
            branch = getattr(self, f"kernel_{kernel}_{dilation}")
            y = y + getattr(self, f"norm_{kernel}_{dilation}")(branch(x))
        return y


class ResponseNormalisation(nn.Module):
    """Channels last, scaled by their norms over the positions (arXiv 2301.00808, §3.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        size = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        response = size / (size.mean(dim=-1, keepdim=True) + 1e-6)
        return (self.gamma * response + 1) * x + self.beta


class FeedForward(nn.Module):
    """A bias, a linear layer, a batch norm, a layer scale (UniRepLKNet, 2311.15599, §3)."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(C, 2 * C)
        self.response = ResponseNormalisation(2 * C)
        self.down = nn.Linear(2 * C, C, bias=False)
        self.norm = nn.BatchNorm2d(C)
        self.gamma = nn.Parameter(1e-6 * torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.up(x.permute(0, 2, 3, 1)))
        y = self.norm(self.down(self.response(y)).permute(0, 3, 1, 2))
        return x + self.gamma.view(1, -1, 1, 1).mul(y)


class RepNextMedium(nn.Module):
    """7×7 beside 5×3, 3×5, 1×7 then 7×1, and 1×5 then 5×1 (RepNeXt, arXiv 2406.16004, §3)."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = depthwise(C, 7, bias=True)
        self.tall, self.wide = depthwise(C, (5, 3), bias=True), depthwise(C, (3, 5), bias=True)
        self.rows7, self.columns7 = depthwise(C, (1, 7)), depthwise(C, (7, 1))
        self.rows5, self.columns5 = depthwise(C, (1, 5)), depthwise(C, (5, 1))

    def forward(self, x: Tensor) -> Tensor:
        parallel = self.dense(x) + self.tall(x) + self.wide(x)
        result: Tensor = parallel + self.columns7(self.rows7(x)) + self.columns5(self.rows5(x))
        return result


class RepNextSmall(nn.Module):
    """3×3 beside 1×3, 3×1 (in a row at stride 2) and a dilated 2×2 (arXiv 2406.16004, §3)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride, parallel = stride, stride == 1
        self.dense = depthwise(C, 3, stride=stride, bias=True)
        self.rows = depthwise(C, (1, 3), stride=(1, stride), bias=parallel)
        self.columns = depthwise(C, (3, 1), stride=(stride, 1), bias=parallel)
        self.corners = depthwise(C, 2, stride=stride, dilation=2, padding=1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows(x)
        lines = self.columns(x) + rows if self.stride == 1 else self.columns(rows)
        result: Tensor = self.dense(x) + lines + self.corners(x)
        return result


class DecomposedKernel(nn.Module):
    """Two long rectangles in place of a large square (SLaK, arXiv 2207.03620, §4)."""

    def __init__(self) -> None:
        super().__init__()
        self.tall, self.wide = depthwise_norm(C, (51, 5)), depthwise_norm(C, (5, 51))
        self.small = depthwise_norm(C, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.tall(x) + self.wide(x)
        return result + self.small(x)


BLOCKS = [
    Block("RepLKNet", LargeKernel, images(C), ((C, 1, 31, 31),), by_hand=ONE_CONVOLUTION),
    Block("UniRepLKNet", DilatedBranches, images(C), ((C, 1, 13, 13),), by_hand=ONE_CONVOLUTION),
    Block(
        "UniRepLKNet, feed-forward",
        FeedForward,
        images(C),
        ((2 * C, C), (C, 2 * C)),
        # Of the norm its last shift goes; left are two sums, a quotient and two products.
        OperatorCounts(additions=3, multiplications=3),
        OperatorCounts(linears=2, additions=3),
    ),
    Block("RepNeXt, medium", RepNextMedium, images(C), ((C, 1, 7, 7),), by_hand=ONE_CONVOLUTION),
    Block(
        "RepNeXt, small",
        lambda: RepNextSmall(stride=1),
        images(C),
        ((C, 1, 3, 3),),
        by_hand=ONE_CONVOLUTION,
    ),
    Block(
        "RepNeXt, small, stride 2",
        lambda: RepNextSmall(stride=2),
        images(C),
        ((C, 1, 3, 3),),
        by_hand=ONE_CONVOLUTION,
    ),
    # One 51×51 would cost five times as much; the small kernel fits into either rectangle.
    Block(
        "SLaK",
        DecomposedKernel,
        images(C),
        ((C, 1, 51, 5), (C, 1, 5, 51)),
        OperatorCounts(additions=1),
    ),
]
