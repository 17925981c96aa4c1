"""Semantic segmentation on a RepVGG: a pyramid pooling head, as in PSPNet.

The head has batch norms of its own, and nothing in it knows about fusing: `reparam.fuse` finds its
convolutions as it finds those of the backbone. Zhao et al., "Pyramid Scene Parsing Network"
(https://arxiv.org/abs/1612.01105), section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from reparam import ReparamError
from repvgg.models.blocks import conv_norm
from repvgg.models.config import check_positive
from repvgg.models.features import RepVGGFeatures


class PyramidPooling(nn.Module):
    r"""Adds, to every place of a picture, what the picture shows around it, coarser and coarser.

    The features are averaged over a grid of each size, reduced to a part of their channels, brought
    back to their size and put beside the features themselves.

    Args:
        channels: Number of input channels.
        grids: How many cells each grid has along both axes.

    Shape:
        - Input: :math:`(N, C, H, W)`
        - Output: :math:`(N, C + len(grids) \lfloor C / len(grids) \rfloor, H, W)`
    """

    def __init__(self, channels: int, grids: Sequence[int]) -> None:
        super().__init__()
        reduced = channels // len(grids)
        self.out_channels = channels + len(grids) * reduced
        self.grids = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(grid), *_conv_norm_relu(channels, reduced, 1))
            for grid in grids
        )

    def forward(self, x: Tensor) -> Tensor:
        """Pools and concatenates."""
        size = x.shape[-2:]
        pooled = [
            functional.interpolate(grid(x), size, mode="bilinear", align_corners=False)
            for grid in self.grids
        ]
        return torch.cat([x, *pooled], dim=1)


class Segmenter(nn.Module):
    r"""Says of every pixel to which class it belongs.

    Args:
        backbone: Where the features come from; the last of its outputs is used. Strides of one in
            the last stages keep the features large: PSPNet's are an eighth of the picture.
        num_classes: Number of classes.
        channels: Number of channels between the head's two convolutions.
        grids: How many cells each grid of the pyramid has along both axes.

    Shape:
        - Input: :math:`(N, C_{in}, H, W)`
        - Output: :math:`(N, num\_classes, H, W)`, the logits

    Raises:
        ReparamError: If a number is not a positive integer, or there is no grid.

    Examples:
        >>> from repvgg import RepVGGConfig
        >>> config = RepVGGConfig((1, 1, 1, 1), (8, 8, 16, 16, 32), strides=(2, 2, 2, 1, 1))
        >>> segmenter = Segmenter(RepVGGFeatures(config), num_classes=5)
        >>> segmenter(torch.rand(2, 3, 48, 64)).shape
        torch.Size([2, 5, 48, 64])
    """

    def __init__(
        self,
        backbone: RepVGGFeatures,
        num_classes: int,
        *,
        channels: int = 128,
        grids: Sequence[int] = (1, 2, 3, 6),
    ) -> None:
        super().__init__()
        for name, numbers in {
            "num_classes": [num_classes],
            "channels": [channels],
            "grids": grids,
        }.items():
            for number in numbers:
                check_positive(name, number)
        features = backbone.feature_info.channels()[-1]
        if not 0 < len(grids) <= features:
            raise ReparamError(
                f"`grids` has {len(grids)} sizes: give at least one, and no more than the "
                f"{features} channels of the features, which they share"
            )
        self.backbone = backbone
        self.pyramid = PyramidPooling(features, grids)
        self.head = nn.Sequential(
            *_conv_norm_relu(self.pyramid.out_channels, channels, 3),
            nn.Conv2d(channels, num_classes, kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Computes the logits of every pixel."""
        logits = self.head(self.pyramid(self.backbone(x)[-1]))
        return functional.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=False)


def _conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int) -> list[nn.Module]:
    return [*conv_norm(in_channels, out_channels, kernel_size), nn.ReLU()]
