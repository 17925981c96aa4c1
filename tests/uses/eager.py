"""A network whose own forward cannot be traced; importable where torchvision is not."""

import torch.nn.functional as F
from torch import Tensor, nn


class Branches(nn.Module):
    """Two convolutions, a batch norm and a sum."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.point = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.dense(x)) + self.point(x))


class Eager(nn.Module):
    """Whether its second block runs depends on what the first one returned."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Branches(3, 8)
        self.second = Branches(8, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.mean() > -1:
            x = self.second(x)
        return self.head(x.mean((2, 3)))
