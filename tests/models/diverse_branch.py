"""Inception-like branches: asymmetric kernels, average pools, and 1×1 before k×k."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.block import ONE_CONVOLUTION, Block, images
from tests.models.parts import convolution, convolution_norm

C = 8


class Asymmetric(nn.Module):
    """3×3, 3×1 and 1×3 with a batch norm each (ACNet, arXiv 1908.03930, §3)."""

    def __init__(self) -> None:
        super().__init__()
        self.square = convolution_norm(C, C, 3)
        self.vertical, self.horizontal = (
            convolution_norm(C, C, (3, 1)),
            convolution_norm(C, C, (1, 3)),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.square(x) + self.vertical(x) + self.horizontal(x)
        return result.relu()


class UnpaddedAsymmetric(nn.Module):
    """Without padding, the narrow kernels get a cropped input (ACNet, arXiv 1908.03930, §3)."""

    def __init__(self) -> None:
        super().__init__()
        self.square = convolution_norm(C, C, 3, padding=0)
        self.vertical = convolution_norm(C, C, (3, 1), padding=0)
        self.horizontal = convolution_norm(C, C, (1, 3), padding=0)

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.vertical(x[:, :, :, 1:-1]) + self.horizontal(x[:, :, 1:-1, :])
        result: Tensor = self.square(x) + narrow
        return result.relu()


class NormAndPad(nn.Module):
    """A batch norm that pads with what it makes of zeros (DBB, arXiv 2103.13425, §3.1)."""

    def __init__(self, channels: int, padding: int, affine: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=affine)
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        if self.padding > 0:
            norm, padding = self.norm, self.padding
            deviation = torch.sqrt(norm.running_var + norm.eps)
            if norm.affine:
                value = norm.bias.detach() - norm.running_mean * norm.weight.detach() / deviation
            else:
                value = -norm.running_mean / deviation
            y = F.pad(y, [padding] * 4)
            value = value.view(1, -1, 1, 1)
            y[:, :, 0:padding, :] = value
            y[:, :, -padding:, :] = value
            y[:, :, :, 0:padding] = value
            y[:, :, :, -padding:] = value
        return y


class IdentityBasedPoint(nn.Module):
    """A 1×1 to which the identity is added (DBB, arXiv 2103.13425, §3.2)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.conv = convolution(channels, channels, 1, groups=groups)
        nn.init.zeros_(self.conv.weight)
        width = channels // groups
        identity = torch.eye(width).repeat(groups, 1)[:, :, None, None]
        self.register_buffer("identity", identity)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.conv.weight + self.identity.to(self.conv.weight.device)
        return F.conv2d(x, kernel, None, stride=1, groups=self.groups)


class DiverseBranch(nn.Module):
    """k×k, 1×1, 1×1 before k×k, and a pool, each with its norms (DBB, arXiv 2103.13425, §3.2).

    Args:
        kernel: Size of the kernel.
        stride: Stride of all branches.
        groups: Groups of all branches; depthwise has no 1×1 alone and pools the input itself.
        inner_channels: Between 1×1 and k×k; None for an identity-based 1×1.
    """

    def __init__(
        self,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        inner_channels: int | None = None,
    ) -> None:
        super().__init__()
        padding = kernel // 2
        self.origin = convolution_norm(C, C, kernel, stride=stride, groups=groups)
        if groups < C:
            self.point = convolution_norm(C, C, 1, stride=stride, groups=groups)
            self.average = nn.Sequential(
                convolution(C, C, 1, groups=groups),
                NormAndPad(C, padding),
                nn.AvgPool2d(kernel, stride, padding=0),
                nn.BatchNorm2d(C),
            )
        else:
            pool = nn.AvgPool2d(kernel, stride, padding)
            self.point, self.average = None, nn.Sequential(pool, nn.BatchNorm2d(C))
        inner = inner_channels or C
        first = (
            IdentityBasedPoint(C, groups)
            if inner_channels is None
            else convolution(C, inner, 1, groups=groups)
        )
        self.sequence = nn.Sequential(
            first,
            NormAndPad(inner, padding, affine=True),
            convolution(inner, C, kernel, stride=stride, padding=0, groups=groups),
            nn.BatchNorm2d(C),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.origin(x)
        if self.point is not None:
            y += self.point(x)
        y += self.average(x)
        y += self.sequence(x)
        return y.relu()


class PaddedPool(nn.Module):
    """Of DBB the branch with a pool alone, its norm without parameters (2103.13425, §3.1)."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            convolution(C, C, 1), NormAndPad(C, 1, affine=False), nn.AvgPool2d(3, 1, padding=0)
        )
        self.origin = convolution_norm(C, C, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.origin(x) + self.branch(x)
        return result


BLOCKS = [
    Block("ACNet", Asymmetric, images(C), ((C, C, 3, 3),), by_hand=ONE_CONVOLUTION),
    Block(
        "ACNet, unpadded",
        UnpaddedAsymmetric,
        ((2, C, 8, 10), (1, C, 7, 13), (2, C, 3, 4)),
        ((C, C, 3, 3),),
        by_hand=ONE_CONVOLUTION,
    ),
    Block(
        "DBB",
        DiverseBranch,
        images(C),
        ((C, C, 3, 3),),
        by_hand=ONE_CONVOLUTION,
    ),
    Block(
        "DBB, 5x5, stride 2",
        lambda: DiverseBranch(5, stride=2),
        images(C),
        ((C, C, 5, 5),),
        by_hand=ONE_CONVOLUTION,
    ),
    Block(
        "DBB, groups",
        lambda: DiverseBranch(groups=2),
        images(C),
        ((C, C // 2, 3, 3),),
        by_hand=ONE_CONVOLUTION,
    ),
    Block(
        "DBB, depthwise",
        lambda: DiverseBranch(groups=C),
        images(C),
        ((C, 1, 3, 3),),
        by_hand=ONE_CONVOLUTION,
    ),
    Block(
        "DBB, wide 1x1",
        lambda: DiverseBranch(inner_channels=12),
        images(C),
        ((C, C, 3, 3),),
        by_hand=ONE_CONVOLUTION,
    ),
    Block(
        "DBB, pool",
        PaddedPool,
        images(C),
        ((C, C, 3, 3),),
        by_hand=ONE_CONVOLUTION,
    ),
]
