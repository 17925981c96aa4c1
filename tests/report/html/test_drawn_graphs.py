"""The graph that the page draws after fusing is the graph that fusing leaves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import reparam
from reparam.report.html.drawn_graphs import DrawnGraph
from reparam.report.html.page_contents import Page, plan_page
from tests.models.block import Block
from tests.models.catalogue import BLOCKS
from tests.support import small_repvgg


def page(model: nn.Module) -> Page:
    plan = reparam.plan(model)
    return plan_page(plan.report, plan._parts, verify=False)


def operators(graph: DrawnGraph) -> int:
    """How many there are; some boxes stand for more than one."""
    titles = [vertex.title for vertex in graph.vertices]
    return sum(title.count(" + ") + 1 for title in titles if title not in _NONE)


_NONE = {"Identity", "CheckedIdentity", "checked_axes", "checked_sizes"}
"""What computes nothing: it is left where an operator was, or checks what was taken for granted."""


def assert_drawn_as_fused(model: nn.Module) -> None:
    planned, left = page(model), page(reparam.fuse(model, verify=False))
    assert [operators(part.after) for part in planned.parts] == [
        operators(part.before) for part in left.parts
    ]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_blocks_are_drawn_as_they_are_fused(block: Block) -> None:
    assert_drawn_as_fused(block.build().eval())


@pytest.mark.parametrize("name", sorted(small_repvgg.CONFIGS))
def test_networks_are_drawn_as_they_are_fused(name: str) -> None:
    assert_drawn_as_fused(small_repvgg.build(name))


def test_regions_have_one_operator_after() -> None:
    found = page(small_repvgg.build("plain"))
    (part,) = found.parts
    numbers = [region.number for region in found.regions]
    after = [vertex.region for vertex in part.after.vertices if vertex.region]
    before = {vertex.region for vertex in part.before.vertices if vertex.region}
    assert after == numbers
    assert before == set(numbers)


def test_every_operator_stands_after_what_it_reads() -> None:
    (part,) = page(small_repvgg.build("squeeze")).parts
    for graph in (part.before, part.after):
        assert graph.edges
        assert all(source < target for source, target in graph.edges)


def test_what_is_known_of_values_is_drawn() -> None:
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
    plan = reparam.plan(nn.Sequential(*layers).eval(), example_inputs=torch.randn(2, 3, 6, 6))
    (part,) = plan_page(plan.report, plan._parts, verify=False).parts
    shapes = [vertex.shape for vertex in part.before.vertices]
    assert shapes == [(2, 3, 6, 6), *[(2, 8, 6, 6)] * 3, ()]
    assert [vertex.shape for vertex in part.after.vertices] == [*shapes[:1], *shapes[2:]]
    affine = [vertex.title for vertex in part.before.vertices if vertex.affine]
    assert affine == ["Conv2d 3×3", "BatchNorm2d"]


def test_what_stays_has_the_number_of_its_row() -> None:
    layers = nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU()
    found = page(nn.Sequential(*layers).eval())
    (part,) = found.parts
    for graph in (part.before, part.after):
        (vertex,) = (vertex for vertex in graph.vertices if vertex.refusal)
        assert vertex.refusal is not None
        assert found.refused[vertex.refusal - 1].place == vertex.place == "1"


def test_the_model_is_not_changed() -> None:
    model = small_repvgg.build("plain")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = reparam.plan(model)
    plan_page(plan.report, plan._parts, verify=True)
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert len(plan.apply().reparam_report.fused) == len(plan.fused)
