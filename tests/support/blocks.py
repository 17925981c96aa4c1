"""Blocks that many tests need."""

from torch import Tensor, nn


class ThreeBranches(nn.Module):
    """Three branches and an activation, as in RepVGG.

    Args:
        channels: How many go in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        dense = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.dense = nn.Sequential(dense, nn.BatchNorm2d(channels))
        point = nn.Conv2d(channels, channels, 1, bias=False)
        self.point = nn.Sequential(point, nn.BatchNorm2d(channels))
        self.skip = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return (self.dense(x) + self.point(x) + self.skip(x)).relu()
