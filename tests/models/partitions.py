"""A linear layer over the positions of a partition, beside convolutions of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.block import Block
from tests.models.parts import convolution_norm
from tests.support.counting import OperatorCounts

C, SETS, SIZE = 4, 2, 4
POSITIONS = SETS * SIZE * SIZE


class RepMlp(nn.Module):
    """All positions of a partition to all, and 1×1 and 3×3 beside (RepMLPNet, 2112.11081, §3)."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(C, 2, 1), nn.Conv2d(2, C, 1)
        self.dense = nn.Conv2d(POSITIONS, POSITIONS, 1, bias=False, groups=SETS)
        self.dense_norm = nn.BatchNorm2d(SETS)
        self.local = nn.ModuleList(
            convolution_norm(SETS, SETS, kernel, groups=SETS) for kernel in (1, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.down(F.adaptive_avg_pool2d(x, output_size=(1, 1)))
        gate = torch.sigmoid(self.up(F.relu(gate, inplace=True))).view(-1, C, 1, 1)
        _, _, height, width = x.shape
        rows, columns = height // SIZE, width // SIZE
        parts = x.reshape(-1, C, rows, SIZE, columns, SIZE).permute(0, 2, 4, 1, 3, 5)
        y = self.dense(parts.reshape(-1, POSITIONS, 1, 1)).reshape(-1, SETS, SIZE, SIZE)
        y = self.dense_norm(y).reshape(-1, rows, columns, C, SIZE, SIZE)
        images, z = parts.reshape(-1, SETS, SIZE, SIZE), 0
        for branch in self.local:
            z += branch(images)
        y += z.reshape(y.size())
        y = y.permute(0, 3, 1, 4, 2, 5)
        return y.reshape(x.size()) * gate


BLOCKS = [
    # A partition has a size that the code names, so that the convolutions of it are a linear layer.
    Block(
        "RepMLPNet",
        RepMlp,
        ((2, C, 8, 8), (1, C, 4, 12)),
        ((2, C, 1, 1), (C, 2, 1, 1), (POSITIONS, POSITIONS // SETS, 1, 1)),
        OperatorCounts(multiplications=1, average_pools=1),
    ),
]
