"""From the groups of channels of a part to their scales, and to the weights that take these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reparam.equalization.channel_layouts import Channels
from reparam.equalization.ranges import Magnitudes, equalizing_scales, magnitudes
from reparam.equalization.scale_flow import Layer, Scaling
from reparam.errors import Refusal
from reparam.modules import fetch


@dataclass(frozen=True, eq=False)
class Rescaling:
    """The scales of a part, by the number of each channel."""

    scaling: Scaling
    scales: Tensor

    def of(self, channels: Channels) -> Tensor:
        """The scales of some channels."""
        return self.scales[_numbers(channels)]

    def changed(self) -> list[Layer]:
        """The layers whose weights change."""
        return [
            layer
            for layer in self.scaling.layers.values()
            if bool((self.of(layer.inputs) != 1).any()) or bool((self.of(layer.outputs) != 1).any())
        ]

    def tensors(self, layer: Layer) -> dict[str, Tensor]:
        """The new weight and bias of a layer in float64, by path."""
        root, weights = self.scaling.part.trace.root, layer.weights
        weight = fetch(root, weights.weight).detach()
        made, read = (self.of(side).to(weight.device) for side in (layer.outputs, layer.inputs))
        count = weights.groups
        factors = made.view(count, -1, 1) / read.view(count, 1, -1)
        if weights.transposed:
            factors = factors.transpose(1, 2)
        factors = factors.flatten(0, 1)
        new = {
            weights.weight: weight.double()
            * factors.view(*factors.shape, *(1,) * (weight.dim() - 2))
        }
        if weights.bias is not None:
            new[weights.bias] = fetch(root, weights.bias).detach().double() * made
        return new


def rescale(scaling: Scaling, *, powers_of_two: bool) -> Rescaling:
    """Find the scales of a part; a layer whose new weights its type cannot hold keeps its own."""
    while True:
        rescaling = Rescaling(scaling, _scales(scaling, powers_of_two))
        lossy = [layer for layer in rescaling.changed() if not _are_held(layer, rescaling)]
        if not lossy:
            return rescaling
        for layer in lossy:
            reason = Refusal("its scaled weights leave the range of their type")
            scaling.groups.fix((*layer.inputs, *layer.outputs), reason)


def _scales(scaling: Scaling, powers_of_two: bool) -> Tensor:
    groups = scaling.groups
    first = [groups.find(channel) for channel in range(len(groups.parents))]
    numbers = {group: number for number, group in enumerate(sorted(set(first)))}
    of_channel = _numbers([numbers[group] for group in first])
    free = _numbers([group not in groups.fixed for group in numbers]).bool()
    layers = [_magnitudes(layer, of_channel, scaling) for layer in scaling.layers.values()]
    return equalizing_scales(layers, free, powers_of_two=powers_of_two).exp2()[of_channel]


def _magnitudes(layer: Layer, of_channel: Tensor, scaling: Scaling) -> Magnitudes:
    weights = layer.weights
    weight = fetch(scaling.part.trace.root, weights.weight)
    logarithms = magnitudes(weight, weights.groups, transposed=weights.transposed)
    outputs, inputs = (of_channel[_numbers(side)] for side in (layer.outputs, layer.inputs))
    if weights.groups == 1:  # several columns of one channel, since it was flattened, are one
        inputs, columns = inputs.unique(return_inverse=True)
        largest = logarithms.new_full((1, logarithms.shape[1], len(inputs)), -torch.inf)
        logarithms = largest.scatter_reduce_(2, columns.expand_as(logarithms), logarithms, "amax")
    return Magnitudes(logarithms, outputs, inputs)


def _numbers(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.long, device="cpu")


def _are_held(layer: Layer, rescaling: Rescaling) -> bool:
    """Whether the type of a layer holds its new weights as exactly as it held the old ones."""
    root = rescaling.scaling.part.trace.root
    for path, exact in rescaling.tensors(layer).items():
        old = fetch(root, path)
        rows = exact.flatten(1) if exact.dim() > 1 else exact[:, None]
        # Of numbers near zero digits are lost, which is nothing beside the largest one of a row.
        bound = torch.finfo(old.dtype).eps * rows.abs().amax(1, keepdim=True)
        difference = (rows.to(old.dtype).double() - rows).abs()
        if not bool((difference <= bound).all()):
            return False
    return True


def spread_of(layer: Layer, rescaling: Rescaling) -> tuple[float, float]:
    """The largest range of an output channel of a layer over the smallest, before and after."""
    weights = layer.weights
    old = fetch(rescaling.scaling.part.trace.root, weights.weight)
    spreads: list[float] = []
    for weight in (old, rescaling.tensors(layer)[weights.weight]):
        logarithms = magnitudes(weight, weights.groups, transposed=weights.transposed)
        ranges = logarithms.amax(2).exp2().flatten()
        there = ranges[ranges > 0]
        spreads.append(float(there.max() / there.min()) if len(there) else 1.0)
    return spreads[0], spreads[1]
