"""A gain per channel in decibels, and an offset."""

import torch
from torch import Tensor, nn


class Gain(nn.Module):
    """Multiplies each channel by ``10 ** (level / 20)`` and adds its offset.

    Args:
        channels: Number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.linspace(-6, 6, channels))
        self.offset = nn.Parameter(torch.linspace(-1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Apply it; the check of the values keeps tracers out."""
        if not torch.isfinite(x).all():
            raise ValueError("a gain of values that are not finite")
        gain = 10 ** (self.level / 20)
        return x * gain[:, None, None] + self.offset[:, None, None]
