"""The stages: which of their blocks are grouped, and in which order parameters lie."""

from __future__ import annotations

import re

import torch
from torch import nn

from repvgg import RepVGG, RepVGGBlock, RepVGGConfig


def test_every_second_block_is_grouped_counted_over_the_whole_network() -> None:
    config = RepVGGConfig((4, 6, 16, 1), (64, 64, 64, 64, 64), groups=4)
    with torch.device("meta"):
        model = RepVGG(config)
    blocks = [module for module in model.modules() if isinstance(module, RepVGGBlock)]
    assert len(blocks) == 28
    grouped = {
        layer
        for layer, block in enumerate(blocks)
        if [m.groups for m in block.modules() if isinstance(m, nn.Conv2d)] == [4, 4]
    }
    assert grouped == set(range(2, 27, 2))


def test_parameters_are_grouped_by_block_or_by_stage() -> None:
    model = RepVGG(RepVGGConfig((1, 2, 2, 1), (8, 8, 8, 8, 8), plus=True))
    groups = {
        coarse: [re.compile(pattern) for pattern in model.group_matcher(coarse).values()]
        for coarse in (False, True)
    }
    groups_of = {
        coarse: {
            name: [
                (place, *match.groups())
                for place, p in enumerate(patterns)
                if (match := p.match(name))
            ]
            for name, _ in model.named_parameters()
        }
        for coarse, patterns in groups.items()
    }
    name = "stage2.blocks.1.rbr_identity.weight"
    assert (groups_of[False][name], groups_of[True][name]) == (
        [(2, "1")],
        [(2,)],
    )
    name = "stage3_second.blocks.0.post_se.up.bias"
    assert (groups_of[False][name], groups_of[True][name]) == (
        [(4, "0")],
        [(4,)],
    )
    for coarse in (False, True):
        without = {name for name, places in groups_of[coarse].items() if not places}
        assert without == {n for n, _ in model.named_parameters() if "_aux" in n or "linear" in n}
        assert all(len(places) <= 1 for places in groups_of[coarse].values())
