"""Networks for mobile devices: overparameterised depthwise and pointwise convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.block import ONE_CONVOLUTION, Block, images
from tests.models.parts import convolution_norm, depthwise_norm
from tests.support.counting import OperatorCounts

C = 8


class MobileOne(nn.Module):
    """Several equal branches, a 1×1 and a batch norm (arXiv 2206.04040, §3.3)."""

    def __init__(
        self,
        kernel: int,
        groups: int = 1,
        stride: int = 1,
        out_channels: int = C,
        branches: int = 4,
    ) -> None:
        super().__init__()
        settings = {"groups": groups, "stride": stride}
        keeps_shape = out_channels == C and stride == 1
        self.skip = nn.BatchNorm2d(C) if keeps_shape else None
        self.branches = nn.ModuleList(
            convolution_norm(C, out_channels, kernel, **settings) for _ in range(branches)
        )
        self.scale = convolution_norm(C, out_channels, 1, **settings) if kernel > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        identity = 0 if self.skip is None else self.skip(x)
        y = (0 if self.scale is None else self.scale(x)) + identity
        for branch in self.branches:
            y += branch(x)
        return torch.relu(y)


class RepGhost(nn.Module):
    """A pointwise convolution, then a depthwise one beside a batch norm (arXiv 2211.06088, §3)."""

    def __init__(self) -> None:
        super().__init__()
        self.primary = nn.Sequential(convolution_norm(C, C, 1), nn.ReLU(inplace=True))
        self.cheap = depthwise_norm(C, 3)
        self.fusion_convolutions = nn.ModuleList([nn.Identity()])
        self.fusion_norms = nn.ModuleList([nn.BatchNorm2d(C)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        y = self.cheap(x)
        for convolution, norm in zip(self.fusion_convolutions, self.fusion_norms, strict=True):
            y = y + norm(convolution(x))
        return torch.relu(y)


class GhostModule(nn.Module):
    """Three branches per convolution, and a gate of long kernels (arXiv 2404.11202, §3)."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        half = C // 2
        self.primary = nn.ModuleList(convolution_norm(C, half, 1) for _ in range(3))
        self.cheap = nn.ModuleList(depthwise_norm(half, 3) for _ in range(3))
        self.cheap_scale, self.cheap_skip = depthwise_norm(half, 1), nn.BatchNorm2d(half)
        self.gate = nn.Sequential(
            *convolution_norm(C, C, 1), *depthwise_norm(C, (1, 5)), *depthwise_norm(C, (5, 1))
        ) if gated else None  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = 0
        for branch in self.primary:
            y += branch(x)
        y = torch.relu(y)
        z = self.cheap_scale(y) + self.cheap_skip(y)
        for branch in self.cheap:
            z += branch(y)
        result = torch.cat([y, torch.relu(z)], 1)
        if self.gate is None:
            return result
        gate = torch.sigmoid(self.gate(F.avg_pool2d(x, 2, 2)))
        size = result.shape[-2], result.shape[-1]
        return result[:, :C, :, :] * F.interpolate(gate, size=size, mode="nearest")


class RepDepthwiseSeparable(nn.Module):
    """Depthwise convolutions of falling size, then a pointwise one (PP-LCNetV2, PaddleClas)."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        sizes = [size for size in (5, 3, 1) if size > 1 or stride == 1]
        self.depthwise = nn.ModuleList(depthwise_norm(C, size, stride=stride) for size in sizes)
        self.point = convolution_norm(C, 2 * C, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise[0](x)
        for branch in self.depthwise[1:]:
            y += branch(x)
        return torch.relu(self.point(y))


class RepVggDepthwise(nn.Module):
    """A batch norm behind 3×3, 1×1 and identity, all depthwise (RepViT, arXiv 2307.09283, §3)."""

    def __init__(self) -> None:
        super().__init__()
        self.three = depthwise_norm(C, 3)
        self.one = nn.Conv2d(C, C, 1, groups=C)
        self.norm = nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm((self.three(x) + self.one(x)) + x)
        return result


class LargeDepthwise(nn.Module):
    """A 7×7 beside a 3×3, both depthwise (YOLOv10, arXiv 2405.14458, §3.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.seven, self.three = depthwise_norm(C, 7), depthwise_norm(C, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.seven(x) + self.three(x))


class MobileOneBranches(nn.Module):
    """MobileOne's branches without its activation (FastViT, arXiv 2303.14189, §3.2)."""

    def __init__(self, convolutions: bool) -> None:
        super().__init__()
        self.skip = nn.BatchNorm2d(C)
        self.dense = depthwise_norm(C, 3) if convolutions else None
        self.scale = depthwise_norm(C, 1) if convolutions else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.skip(x)
        for branch in (self.scale, self.dense):
            if branch is not None:
                y = y + branch(x)
        return y


class RepMixer(nn.Module):
    """What a mixer adds to a norm, scaled, within a residual (FastViT, arXiv 2303.14189, §3.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer, self.norm = MobileOneBranches(True), MobileOneBranches(False)
        self.gamma = nn.Parameter(torch.full((C, 1, 1), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.gamma * (self.mixer(x) - self.norm(x))
        return result


class ConditionalPositions(nn.Module):
    """Positions from a depthwise convolution (FastViT, arXiv 2303.14189, §3.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Conv2d(C, C, 7, padding=3, groups=C)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.positions(x) + x
        return result


class ScaledMixer(nn.Module):
    """7×7 depthwise and two 1×1, a layer scale, a residual (iFormer, arXiv 2501.15369, §3)."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = depthwise_norm(C, 7)
        self.expand, self.reduce = convolution_norm(C, 2 * C, 1), convolution_norm(2 * C, C, 1)
        self.gamma = nn.Parameter(1e-6 * torch.ones(C, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(F.gelu(self.expand(self.depthwise(x))))
        result: Tensor = x + self.gamma * y
        return result


THREE = ((C, 1, 3, 3),)
SEVEN = ((C, 1, 7, 7),)
GHOST = ((C // 2, C, 1, 1), (C // 2, 1, 3, 3))

BLOCKS = [
    Block(
        "MobileOne, depthwise",
        lambda: MobileOne(3, groups=C),
        images(C),
        THREE,
        by_hand=ONE_CONVOLUTION,
    ),
    Block(
        "MobileOne, depthwise, stride 2",
        lambda: MobileOne(3, groups=C, stride=2),
        images(C),
        THREE,
        by_hand=ONE_CONVOLUTION,
    ),
    Block(
        "MobileOne, pointwise",
        lambda: MobileOne(1),
        images(C),
        ((C, C, 1, 1),),
        by_hand=ONE_CONVOLUTION,
    ),
    Block(
        "MobileOne, pointwise and wider",
        lambda: MobileOne(1, out_channels=2 * C),
        images(C),
        ((2 * C, C, 1, 1),),
        by_hand=ONE_CONVOLUTION,
    ),
    # By hand the batch norm of the pointwise convolution stays.
    Block(
        "RepGhost",
        RepGhost,
        images(C),
        ((C, C, 1, 1), *THREE),
        by_hand=OperatorCounts(convolutions=2, batch_norms=1),
    ),
    Block(
        "GhostNetV3",
        lambda: GhostModule(gated=False),
        images(C),
        GHOST,
        by_hand=OperatorCounts(convolutions=2),
    ),
    # Each batch norm of the gate goes into the convolution before it; by hand they stay.
    Block(
        "GhostNetV3, gated",
        lambda: GhostModule(gated=True),
        images(C),
        (*GHOST, (C, C, 1, 1), (C, 1, 1, 5), (C, 1, 5, 1)),
        OperatorCounts(average_pools=1, multiplications=1),
        OperatorCounts(convolutions=5, batch_norms=3),
    ),
    # By hand the batch norm of the pointwise convolution stays.
    Block(
        "PP-LCNetV2",
        RepDepthwiseSeparable,
        images(C),
        ((C, 1, 5, 5), (2 * C, C, 1, 1)),
        by_hand=OperatorCounts(convolutions=2, batch_norms=1),
    ),
    Block(
        "PP-LCNetV2, stride 2",
        lambda: RepDepthwiseSeparable(stride=2),
        images(C),
        ((C, 1, 5, 5), (2 * C, C, 1, 1)),
        by_hand=OperatorCounts(convolutions=2, batch_norms=1),
    ),
    Block("RepViT", RepVggDepthwise, images(C), THREE, by_hand=ONE_CONVOLUTION),
    Block("YOLOv10", LargeDepthwise, images(C), SEVEN, by_hand=ONE_CONVOLUTION),
    Block("FastViT RepMixer", RepMixer, images(C), THREE, by_hand=ONE_CONVOLUTION),
    Block("FastViT positions", ConditionalPositions, images(C), SEVEN, by_hand=ONE_CONVOLUTION),
    Block(
        "iFormer",
        ScaledMixer,
        images(C),
        (*SEVEN, (2 * C, C, 1, 1), (C, 2 * C, 1, 1)),
        OperatorCounts(additions=1),
        OperatorCounts(convolutions=3, additions=1, multiplications=1),
    ),
]
