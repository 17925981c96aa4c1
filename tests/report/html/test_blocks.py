"""Blocks are what follows each other, hold few, and show what goes in and out."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.report.html.blocks import FEWEST, MOST, Block, Blocks, find_blocks
from reparam.report.html.drawn_graphs import drawn_nodes
from tests.support import small_repvgg


def blocks_of(model: nn.Module) -> Blocks:
    (planned,) = reparam.plan(model.eval())._parts
    return find_blocks(planned.part, drawn_nodes(planned.part))


def named(found: Blocks) -> list[tuple[str, str, int | None]]:
    return [(block.title, block.place, block.parent) for block in found.blocks]


class Pair(nn.Sequential):
    def __init__(self, channels: int) -> None:
        layers = nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU()
        super().__init__(*layers, nn.Tanh())


def test_a_call_of_a_module_is_a_block() -> None:
    model = nn.Sequential(Pair(2), Pair(2), nn.ReLU())
    found = blocks_of(model)
    whole = ("Sequential", "the model", None)
    assert named(found) == [whole, ("Pair", "0", 0), ("Pair", "1", 0)]
    assert Counter(found.holder.values()) == {0: 3, 1: 4, 2: 4}, "input, output and an activation"
    assert [*found.holder] == sorted(found.holder), "in the order of the graph"


def test_few_operators_make_no_block() -> None:
    small = nn.Sequential(*[nn.ReLU() for _ in range(FEWEST - 1)])
    large = nn.Sequential(*[nn.ReLU() for _ in range(FEWEST)])
    assert named(blocks_of(nn.Sequential(small, large)))[1:] == [("Sequential", "1", 0)]


def test_of_blocks_that_are_the_same_the_innermost_stays() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Sequential(Pair(2))))
    assert named(blocks_of(model))[1:] == [("Pair", "1.0.0", 0)]
    assert len(blocks_of(nn.Sequential(Pair(2))).blocks) == 1, "it is the whole graph"


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Pair(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner(x).sigmoid())


def test_each_call_is_a_block_of_its_own() -> None:
    assert named(blocks_of(Twice()))[1:] == [("Pair", "inner", 0)] * 2


@pytest.mark.parametrize("count", [MOST, MOST + 1, 10 * MOST, 60 * MOST + 7])
def test_no_block_holds_many(count: int) -> None:
    found = blocks_of(nn.Sequential(*[nn.ReLU() for _ in range(count)]))
    held = Counter(block.parent for block in found.blocks) + Counter(found.holder.values())
    assert max(held.values()) <= MOST + 2
    assert len(found.blocks) < 2 + count / 8
    assert [found.holder[node] for node in (*found.holder,)[:: len(found.holder) - 1]] == [0, 0]


def test_a_run_is_named_after_its_ends() -> None:
    layers = [layer for _ in range(40) for layer in (nn.Conv2d(2, 2, 1), nn.ReLU())]
    model = nn.Sequential(nn.Sequential(*layers), nn.ReLU())
    found = blocks_of(model)
    assert found.blocks[1] == Block("Sequential", "0", 0)
    assert found.blocks[2] == Block("0.0 – 47", "24 Conv2d + …", 1)
    assert found.blocks[3] == Block("0.48 – 79", "16 Conv2d + …", 1)


@pytest.mark.parametrize("name", sorted(small_repvgg.CONFIGS))
def test_what_is_in_a_block_follows_each_other(name: str) -> None:
    found = blocks_of(small_repvgg.build(name))
    parents = [block.parent for block in found.blocks]
    assert all(parent is not None and parent < at for at, parent in enumerate(parents) if at)
    members: dict[int, list[int]] = {}
    for position, number in enumerate(found.holder.values()):
        at: int | None = number
        while at is not None:
            members.setdefault(at, []).append(position)
            at = parents[at]
    for positions in members.values():
        assert positions == [*range(positions[0], positions[-1] + 1)]


def test_a_program_without_modules_has_runs() -> None:
    layers = nn.Sequential(*[nn.Tanh() for _ in range(MOST + 2)]).eval()
    (planned,) = reparam.plan(torch.export.export(layers, (torch.randn(1, 3),)))._parts
    found = find_blocks(planned.part, drawn_nodes(planned.part))
    assert [block.parent for block in found.blocks] == [None, 0, 0]
