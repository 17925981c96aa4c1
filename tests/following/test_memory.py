"""Refreshing holds one region in float64 at a time, and no more: counted, not timed."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from torch import nn

import reparam
from reparam.algebra.expressions import leaves
from reparam.following.names import Named, held_tensors
from reparam.following.recipe_books import book_of
from tests.following.moving import moved
from tests.models.catalogue import BLOCKS
from tests.models.test_blocks import trained
from tests.support.live_bytes import LiveBytes

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
    held = max((sum(pair) for pair in sizes(fused, model)), default=0)
    assert peak(fused, moved(model)) <= 1.25 * held  # and what lies between the kernels of a chain
