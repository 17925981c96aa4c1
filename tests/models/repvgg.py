"""RepVGG and its descendants: branches of 3×3, 1×1 and identity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.models.block import ONE_CONVOLUTION, Block, images
from tests.models.parts import SqueezeExcitation, convolution, convolution_norm
from tests.support.counting import OperatorCounts

C = 8


class RepVGG(nn.Module):
    """A batch norm behind each branch (arXiv 2101.03697, §3.3)."""

    def __init__(
        self, out_channels: int = C, stride: int = 1, groups: int = 1, gate: nn.Module | None = None
    ) -> None:
        super().__init__()
        settings = {"stride": stride, "groups": groups}
        self.dense = convolution_norm(C, out_channels, 3, **settings)
        self.point = convolution_norm(C, out_channels, 1, **settings)
        keeps_shape = out_channels == C and stride == 1
        self.identity = nn.BatchNorm2d(C) if keeps_shape else None
        self.gate = gate or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        identity = 0 if self.identity is None else self.identity(x)
        return torch.relu(self.gate(self.dense(x) + self.point(x) + identity))


class QuantizationAwareRepVGG(nn.Module):
    """One batch norm behind the sum of the branches (arXiv 2212.01593, §3)."""

    def __init__(self, stride: int = 1, pool: bool = False) -> None:
        super().__init__()
        self.dense = convolution_norm(C, C, 3, stride=stride)
        self.point = convolution(C, C, 1, stride=stride)
        self.identity = nn.Identity() if stride == 1 else None
        self.pool = nn.AvgPool2d(3, stride, 1) if pool else None
        self.norm = nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        identity = 0 if self.identity is None else self.identity(x)
        average = 0 if self.pool is None else self.pool(x)
        return torch.relu(self.norm(self.dense(x) + self.point(x) + identity + average))


class YoloRepConv(nn.Module):
    """As RepVGG with SiLU, the identity optional (YOLOv7, arXiv 2207.02696, §4.1)."""

    def __init__(self, identity: bool) -> None:
        super().__init__()
        self.dense = convolution_norm(C, C, 3)
        self.point = convolution_norm(C, C, 1)
        self.identity = nn.BatchNorm2d(C) if identity else None
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        identity = 0 if self.identity is None else self.identity(x)
        result: Tensor = self.act(self.dense(x) + self.point(x) + identity)
        return result


class RepBottleneck(nn.Module):
    """A RepConv and a convolution within a residual (YOLOv9, arXiv 2402.13616, §4)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = YoloRepConv(identity=False)
        self.second = convolution_norm(C, C, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.nn.functional.silu(self.second(self.first(x)))


class BottleRep(nn.Module):
    """Two blocks and a shortcut with a learned weight (YOLOv6, arXiv 2209.02976, §2.1)."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.alpha = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x)) + self.alpha * x
        return result


class Scale(nn.Module):
    """One factor per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.view(1, C, 1, 1)


class LinearAdd(nn.Module):
    """Scaled branches in the search for the scales of RepOpt-VGG (arXiv 2205.15242, §3)."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.dense_scale = convolution(C, C, 3), Scale()
        self.point, self.point_scale = convolution(C, C, 1), Scale()
        self.identity_scale = Scale()
        self.norm = nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense_scale(self.dense(x)) + self.point_scale(self.point(x))
        return torch.relu(self.norm(y + self.identity_scale(x)))


def block(name: str, build: Any, **expected: Any) -> Block:
    """A block that becomes one 3×3, by hand too."""
    return Block(
        name,
        build,
        images(C),
        **{"kernels": ((C, C, 3, 3),), "by_hand": ONE_CONVOLUTION, **expected},
    )


BLOCKS = [
    block("RepVGG", RepVGG),
    block("RepVGG, stride 2", lambda: RepVGG(12, stride=2), kernels=((12, C, 3, 3),)),
    block("RepVGG, wider", lambda: RepVGG(12), kernels=((12, C, 3, 3),)),
    block("RepVGG, groups", lambda: RepVGG(groups=4), kernels=((C, 2, 3, 3),)),
    block(
        "RepVGG, squeeze and excitation",
        lambda: RepVGG(gate=SqueezeExcitation(C)),
        kernels=((C, C, 3, 3), (2, C, 1, 1), (C, 2, 1, 1)),
        left=OperatorCounts(multiplications=1),
        by_hand=OperatorCounts(convolutions=3),
    ),
    block("QARepVGG", QuantizationAwareRepVGG),
    block("QARepVGG, stride 2", lambda: QuantizationAwareRepVGG(stride=2)),
    # By hand the last batch norm stays.
    block(
        "QARepVGG-V2",
        lambda: QuantizationAwareRepVGG(pool=True),
        by_hand=OperatorCounts(convolutions=1, batch_norms=1),
    ),
    block("RepOpt-VGG, linear addition", LinearAdd, by_hand=None),
    block("YOLOv7 RepConv", lambda: YoloRepConv(identity=True)),
    block("YOLOv9 RepConvN", lambda: YoloRepConv(identity=False)),
    block(
        "YOLOv9 RepNBottleneck",
        RepBottleneck,
        kernels=((C, C, 3, 3),) * 2,
        left=OperatorCounts(additions=1),
        by_hand=OperatorCounts(convolutions=2, additions=1),
    ),
    block(
        "YOLOv6 BottleRep",
        lambda: BottleRep(RepVGG(), RepVGG()),
        kernels=((C, C, 3, 3),) * 2,
        left=OperatorCounts(additions=1, multiplications=1),
        by_hand=OperatorCounts(convolutions=2, additions=1),
    ),
    block(
        "YOLOv6 shortcut around one convolution",
        lambda: BottleRep(nn.Identity(), convolution_norm(C, C, 3)),
        by_hand=None,
    ),
]
