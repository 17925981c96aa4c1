"""Kernels as small heat maps: a few hundred hexadecimal digits at most, whatever their size."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from reparam.algebra import AffineConv, kernel_shape

_MOST_TAPS = 24

_MOST_CHANNELS = 12

_MOST_SCALES = 24

_MOST_ENTRIES = 2**25

_SPOKEN = 9  # so many cells are read aloud one by one


@dataclass(frozen=True)
class KernelPicture:
    """A heat map of absolute weights.

    Args:
        rows: One hexadecimal digit per cell: its size, of the largest cell's.
        largest: The largest cell.
        size: What the kernel is, for example "3 × 3 taps".
        meaning: What a cell is.
        spoken: The cells in words, if they are few.
    """

    rows: tuple[str, ...]
    largest: float
    size: str
    meaning: str
    spoken: str = ""


def draw(form: AffineConv) -> KernelPicture | None:
    """Draw the kernel of a form.

    Args:
        form: The form.

    Returns:
        The picture; None where the kernel is too large, or where it lies on the meta device.
    """
    shape = kernel_shape(form.in_channels, form.out_channels, form.groups, form.axes)
    if prod(shape) > _MOST_ENTRIES:
        return None
    kernel, _ = form.weights.evaluate()
    return picture(kernel, depthwise=form.depthwise)


def picture(kernel: Tensor, *, depthwise: bool) -> KernelPicture | None:
    """Draw a kernel.

    Args:
        kernel: The kernel, of the shape ``(out_channels, in_channels / groups, *taps)``.
        depthwise: Whether every output channel reads only its own input channel.

    Returns:
        The picture; None on the meta device.

    Examples:
        >>> import torch
        >>> from reparam.report.html.kernel_pictures import picture
        >>> picture(torch.tensor([[[1.0, -2.0, 0.0]]]), depthwise=True).rows
        ('8f0',)
    """
    if kernel.is_meta or not kernel.numel():
        return None
    sizes = kernel.detach().double().cpu().abs()
    sizes = torch.where(sizes.isfinite(), sizes, torch.zeros_like(sizes))
    taps = list(kernel.shape[2:])
    if prod(taps) > 1:
        cells, meaning = sizes.mean((0, 1)), "mean absolute weight per tap"
        if cells.dim() == 3:
            cells, meaning = cells.mean(0), f"{meaning} (mean over the first axis)"
        cells = cells if cells.dim() == 2 else cells[None]
        shown = _reduced(cells, _MOST_TAPS)
        size = f"{' × '.join(map(str, taps))} taps"
    elif depthwise:
        shown = _reduced(sizes.reshape(1, -1), _MOST_SCALES)
        meaning, size = "absolute scale per channel", f"{kernel.shape[0]} scales"
    else:
        shown = _reduced(sizes.reshape(kernel.shape[:2]), _MOST_CHANNELS)
        meaning = "absolute weight per output (down) and input channel (across)"
        size = f"{kernel.shape[0]} × {kernel.shape[1]} weights"
    return _quantised(shown, size, meaning)


def _reduced(cells: Tensor, most: int) -> Tensor:
    """At most so many cells along each axis, each a mean of those in its place."""
    height, width = (min(size, most) for size in cells.shape)
    if (height, width) == tuple(cells.shape):
        return cells
    return F.adaptive_avg_pool2d(cells[None], (height, width))[0]


def _quantised(cells: Tensor, size: str, meaning: str) -> KernelPicture:
    largest = float(cells.max())
    levels = (15 * cells / (largest or 1.0)).round().int().tolist()
    rows = tuple("".join(f"{level:x}" for level in row) for row in levels)
    spoken = ""
    if cells.numel() <= _SPOKEN:
        spoken = "; ".join(" ".join(f"{cell:.2g}" for cell in row) for row in cells.tolist())
    return KernelPicture(rows, largest, size, meaning, spoken)
