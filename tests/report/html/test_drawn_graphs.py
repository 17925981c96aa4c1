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
    assert [operators(part.after.graph) for part in planned.parts] == [
        operators(part.before.graph) for part in left.parts
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
    after = [vertex.region for vertex in part.after.graph.vertices if vertex.region]
    before = {vertex.region for vertex in part.before.graph.vertices if vertex.region}
    assert after == numbers
    assert before == set(numbers)


def test_every_edge_leads_downwards() -> None:
    (part,) = page(small_repvgg.build("squeeze")).parts
    for layout in (part.before, part.after):
        for source, target in layout.graph.edges:
            assert layout.corners[source][1] < layout.corners[target][1]


def test_what_stays_has_the_number_of_its_row() -> None:
    layers = nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU()
    found = page(nn.Sequential(*layers).eval())
    (part,) = found.parts
    for graph in (part.before.graph, part.after.graph):
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
