"""Refreshing holds one region in float64 at a time, and no more: counted, not timed."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import reparam
from reparam.algebra.expressions import leaves
from reparam.following.names import Named, held_tensors
from reparam.following.recipe_books import book_of
from tests.following.moving import moved
from tests.models.catalogue import BLOCKS
from tests.models.test_blocks import trained
from tests.support.live_bytes import LiveBytes
from tests.support.saved_bytes import saved_per_image

FLOAT64 = 8


def sizes(fused: nn.Module, model: nn.Module) -> list[tuple[int, int]]:
    """Of each region the bytes of what it is computed of, and of its operator, in float64."""
    held = held_tensors(model)
    pairs = []
    for path, recipe in book_of(fused).operators.items():
        read: set[str] = set()

        def note(value: Any, read: set[str] = read) -> Any:
            read |= {leaf.name for leaf in leaves(value) if isinstance(leaf, Named)}
            return value

        recipe.over(note)
        operator = fused.get_submodule(path).state_dict().values()
        counts = (held[name].numel() for name in read), (tensor.numel() for tensor in operator)
        pairs.append((FLOAT64 * sum(counts[0]), FLOAT64 * sum(counts[1])))
    return pairs


def peak(fused: nn.Module, model: nn.Module) -> int:
    with LiveBytes() as live:
        reparam.refresh(fused, model)
    return live.peak


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s1", "repvit_m0_9"])
def test_refreshing_holds_the_largest_region_at_most(name: str) -> None:
    model = timm.create_model(name).eval()
    fused = reparam.fuse(model, verify=False)
    largest = max(region for region, _ in sizes(fused, model))
    assert 0.9 * largest < peak(fused, moved(model)) <= largest


# Code of their own computes their kernels, and needs what it needs.
COMPUTING = ("OREPA", "OREPA, 5x5", "scaled weight standardisation", "SPAN, kernel")
AFFINE = [pytest.param(b, id=b.name) for b in BLOCKS if b.name not in COMPUTING]


@pytest.mark.parametrize("block", AFFINE)
def test_every_block_needs_its_region_and_its_operator(block: Any) -> None:
    model = deepcopy(trained(block, torch.float32))
    fused = reparam.fuse(model)
    pairs = sizes(fused, model)
    held = max(map(sum, pairs), default=0)
    bound = 1.25 * held  # and what lies between the kernels of a chain
    if block.name == "RepMLPNet":  # a kernel over all positions is as large as the layer: its parts
        bound += 2 * max(operator for _, operator in pairs)
    assert peak(fused, moved(model)) <= bound


class Branches(nn.Module):
    """Branches without norms: a kernel, a scaled one, and two in a row; then a norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.other = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))
        self.first = nn.Conv2d(channels, channels, 1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense(x) + self.other(x) * self.scale + self.second(self.first(x))
        return torch.relu(self.norm(x))


def test_the_online_form_saves_what_one_convolution_saves() -> None:
    """For each image, in training mode: the inputs of the convolution, the norm and the ReLU."""
    model, images = nn.Sequential(Branches(8), Branches(8)).train(), torch.randn(6, 8, 9, 9)
    plain = nn.Sequential(
        *(
            layer
            for _ in range(2)
            for layer in (nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        )
    )
    online = reparam.fuse(model, live=True)
    assert len(online.reparam_report.fused) == 2
    branches, ours, theirs = (saved_per_image(m, images)[0] for m in (model, online, plain))
    assert ours == theirs == (1 + 2 * 2) * images[0].nbytes
    assert branches == theirs + 2 * 2 * images[0].nbytes
