"""A batch norm and the layer before or after it."""

from __future__ import annotations

from torch import Tensor, nn

from tests.models.block import ONE_CONVOLUTION, Block, images
from tests.models.parts import convolution_norm, depthwise_norm
from tests.support.counting import OperatorCounts

C = 8


def transposed() -> nn.Module:
    """A batch norm behind a transposed convolution (DCGAN, arXiv 1511.06434, §3)."""
    return nn.Sequential(nn.ConvTranspose2d(C, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6))


class Head(nn.Module):
    """Pooled features through a linear layer and batch norms (arXiv 1502.03167, §3.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = convolution_norm(C, C, 1)
        self.first = nn.Sequential(nn.Linear(C, C), nn.BatchNorm1d(C), nn.ReLU())
        self.second = nn.Sequential(nn.BatchNorm1d(C), nn.Linear(C, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(x).relu().mean((2, 3))
        result: Tensor = self.second(self.first(x))
        return result


class InvertedResidual(nn.Module):
    """1×1, depthwise, 1×1, each with a batch norm (TinyViT, arXiv 2207.10666, §3)."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(convolution_norm(C, 2 * C, 1), nn.GELU())
        self.depthwise = nn.Sequential(depthwise_norm(2 * C, 3), nn.GELU())
        self.reduce, self.act = convolution_norm(2 * C, C, 1), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.act(self.reduce(self.depthwise(self.expand(x))) + x)
        return result


BLOCKS = [
    Block(
        "convolution",
        lambda: convolution_norm(C, 6, 3),
        images(C),
        ((6, C, 3, 3),),
        by_hand=ONE_CONVOLUTION,
    ),
    Block(
        "transposed convolution",
        transposed,
        images(C),
        ((C, 6, 4, 4),),
        by_hand=ONE_CONVOLUTION,
    ),
    Block("linear layers", Head, images(C), ((C, C, 1, 1), (C, C), (5, C))),
    Block(
        "TinyViT",
        InvertedResidual,
        images(C),
        ((2 * C, C, 1, 1), (2 * C, 1, 3, 3), (C, 2 * C, 1, 1)),
        OperatorCounts(additions=1),
        OperatorCounts(convolutions=3, additions=1),
    ),
]
