"""Random images that differ from each other at every scale, unlike white noise."""

import torch
import torch.nn.functional as F
from torch import Tensor


def random_images(count: int, size: int, seed: int, channels: int = 3) -> Tensor:
    """White noise plus smooth noise of every wavelength, each in a random strength per image."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.5 * torch.randn(count, channels, size, size, generator=generator)
    for pixels in (1, 2, 4, 8, 16):
        coarse = torch.randn(count, channels, pixels, pixels, generator=generator)
        strength = 1.5 * torch.rand(count, 1, 1, 1, generator=generator)
        images += strength * F.interpolate(coarse, (size, size), mode="bilinear")
    return images
