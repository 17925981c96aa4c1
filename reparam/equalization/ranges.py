r"""Ranges of channels, and the scales that make them equal.

Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction
(arXiv 1906.04721), section 4.1. A channel with the scale s is made with s times its weights and
read with 1/s times its weights, so that its ranges r1 and r2 are equal for

    s = sqrt(r2 / r1)

which is one over the paper's scale. A channel that several layers make or read, since values that
share their scale add up, takes the geometric means of their ranges. Each scale changes the ranges
of its neighbours: they take turns until nothing changes.

Powers of two change no digit of a weight or of a value. The factor that all channels of a layer
have in common is left out before the scales are rounded to such powers: it makes no range larger
beside another. So no scale is further from the best one, up to that factor, than 1 was.

All is computed in logarithms to the base 2, where scales add and ranges are maxima of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NEGLIGIBLE = -24.0
"""Logarithm of the range, beside the largest of its tensor, from which a channel counts as dead."""

TOLERANCE = 1e-3
"""Change of all logarithms below which nothing changes any more."""

_MOST_ROUNDS = 500


@dataclass(frozen=True, eq=False)
class Magnitudes:
    """The weight of one layer, as far as ranges go.

    Args:
        logarithms: Of the largest absolute weight of all taps, for each row and column.
        outputs: The group of each row.
        inputs: The group of each column.

    Shape:
        - logarithms: :math:`(G, O / G, I / G)` for G groups of the convolution
        - outputs: :math:`(O)`
        - inputs: :math:`(I)`
    """

    logarithms: Tensor
    outputs: Tensor
    inputs: Tensor

    def of_rows(self, scales: Tensor) -> Tensor:
        """Logarithms of the ranges of the rows, once the groups have these scales."""
        read = scales[self.inputs].view(len(self.logarithms), 1, -1)
        return (self.logarithms - read).amax(2).flatten() + scales[self.outputs]

    def of_columns(self, scales: Tensor) -> Tensor:
        """Logarithms of the ranges of the columns, once the groups have these scales."""
        made = scales[self.outputs].view(len(self.logarithms), -1, 1)
        return (self.logarithms + made).amax(1).flatten() - scales[self.inputs]


def magnitudes(weight: Tensor, groups: int, *, transposed: bool) -> Tensor:
    """The logarithms of `Magnitudes` of a weight as the torch operator takes it."""
    largest = weight.detach().abs().reshape(*weight.shape[:2], -1).amax(2).double().cpu()
    grouped = largest.unflatten(0, (groups, -1))
    return torch.log2(grouped.transpose(1, 2) if transposed else grouped)


def equalizing_scales(layers: Sequence[Magnitudes], free: Tensor, *, powers_of_two: bool) -> Tensor:
    """The logarithm of the scale of each group that is free to have another one than 1.

    Shape:
        - free: :math:`(N)`, for N groups
        - Output: :math:`(N)`
    """
    scales = torch.zeros(len(free), dtype=torch.float64, device="cpu")
    sides = [_Side(layer, made, scales) for layer in layers for made in (True, False)]
    turns = _turns(sides, free & _both_live(sides, len(free)))
    for _ in range(_MOST_ROUNDS):
        change = 0.0
        for turn in turns:
            step = turn.step(scales)
            scales[turn.groups] += step
            change = max(change, float(step.abs().max()))
        if change < TOLERANCE:
            break
    for turn in turns if powers_of_two else ():
        scales[turn.groups] = (scales[turn.groups] - scales[turn.groups].median()).round()
    return scales


class _Side:
    """The rows of a layer's weight, which make groups, or its columns, which read them."""

    def __init__(self, layer: Magnitudes, made: bool, scales: Tensor) -> None:
        self.made = made
        self.groups = layer.outputs if made else layer.inputs
        self.ranges = layer.of_rows if made else layer.of_columns
        ranges = self.ranges(scales)
        self.live = ranges > ranges.max() + NEGLIGIBLE


class _Turn:
    """Groups whose scales change together, and where they are made and read."""

    def __init__(self, groups: Tensor, sides: Sequence[_Side], count: int) -> None:
        self.groups = groups
        number = torch.full((count,), -1, device="cpu")
        number[groups] = torch.arange(len(groups), device="cpu")
        self.places: list[tuple[_Side, Tensor, Tensor]] = []
        for side in sides:
            entries = (side.live & (number[side.groups] >= 0)).nonzero().flatten()
            if len(entries):
                self.places.append((side, entries, number[side.groups[entries]]))

    def step(self, scales: Tensor) -> Tensor:
        """By how much the logarithms of the scales have to change."""
        sums = scales.new_zeros(2, len(self.groups))
        counts = torch.zeros_like(sums)
        for side, entries, numbers in self.places:
            ranges = scales.new_full((len(self.groups),), -torch.inf)
            ranges.scatter_reduce_(0, numbers, side.ranges(scales)[entries], "amax")
            there = ranges.isfinite()
            sums[int(side.made)] += ranges.where(there, 0.0)
            counts[int(side.made)] += there
        read, made = (sums / counts).unbind()
        return (read - made) / 2


def _both_live(sides: Sequence[_Side], count: int) -> Tensor:
    """Which groups are made and read by weights that are not negligible."""
    live = torch.zeros(2, count, dtype=torch.bool, device="cpu")
    for side in sides:
        live[int(side.made), side.groups[side.live]] = True
    return live.all(0)


def _turns(sides: Sequence[_Side], free: Tensor) -> list[_Turn]:
    """The groups of each layer's outputs, but for those of a layer before."""
    left = free.clone()
    turns: list[_Turn] = []
    for side in sides:
        groups = side.groups[left[side.groups]].unique()
        if side.made and len(groups):
            left[groups] = False
            turns.append(_Turn(groups, sides, len(free)))
    return turns
