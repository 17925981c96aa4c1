"""The picture is arranged without overlaps and rendered repeatably."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree

import pytest
from matplotlib.figure import Figure

from reparam.deployment.latency import Comparison, Latency
from repvgg.cli.operations import INPUT, Operation
from repvgg.cli.picture import Form, arrange, draw, render


def operation(label: str, *inputs: int) -> Operation:
    kinds = {"+": "addition", "ReLU": "ReLU", "batch norm": "batch norm"}
    return Operation(kinds.get(label, "convolution"), label, "", inputs)


def block(first: int, source: int) -> list[Operation]:
    """The operations of a block with three branches, the first at place `first`."""
    return [
        operation("conv 3×3", source),
        operation("batch norm", first),
        operation("conv 1×1", source),
        operation("batch norm", first + 2),
        operation("+", first + 1, first + 3),
        operation("batch norm", source),
        operation("+", first + 4, first + 5),
        operation("ReLU", first + 6),
    ]


BLOCK = block(0, INPUT)
NETWORK = [*BLOCK, *block(8, 7)]
FUSED = [operation("conv 3×3", INPUT), operation("ReLU", 0)]


def comparison(batch: int, high: float = 0.0021) -> Comparison:
    return Comparison(batch, 10, Latency(0.002, 0.0019, high), Latency(0.001, 0.0009, 0.0011))


def picture(high: float = 0.0021) -> Figure:
    return draw(
        Form(NETWORK, BLOCK),
        Form([*FUSED, operation("conv 3×3", 1), operation("ReLU", 2)], FUSED),
        [comparison(1, high), comparison(64)],
        summary="both forms agree",
        machine="on this machine",
    )


def test_branches_get_lanes_of_their_own() -> None:
    assert arrange(BLOCK) == [(1, 0), (2, 0), (1, 1), (2, 1), (3, 0), (1, -1), (4, 0), (5, 0)]


def test_the_next_block_is_arranged_like_the_first_behind_it() -> None:
    first, second = arrange(NETWORK)[:8], arrange(NETWORK)[8:]
    assert second == [(column + 5, lane) for column, lane in first]


def test_a_chain_stays_in_the_middle() -> None:
    assert arrange(FUSED) == [(1, 0), (2, 0)]


def test_many_readers_do_not_share_a_place() -> None:
    places = arrange([operation("conv 3×3", INPUT) for _ in range(6)])
    assert sorted(places) == [(1, lane) for lane in range(-2, 4)]


@pytest.mark.parametrize("high", [0.0021, 5.0])
def test_no_text_leaves_the_page_or_covers_another(high: float) -> None:
    figure = picture(high)
    page = figure.bbox
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) > 20
    for box in boxes:
        assert page.x0 < box.x0 < box.x1 < page.x1
        assert page.y0 < box.y0 < box.y1 < page.y1
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)


def test_the_picture_says_what_it_shows() -> None:
    texts = [text.get_text() for text in picture().axes[0].texts]
    assert {"both forms agree", "on this machine", "16 operations", "4 operations"} <= set(texts)
    assert {"4 convolutions", "6 batch norms", "4 additions", "2 ReLUs"} <= set(texts)
    assert texts.count("2.00× faster") == 2


def test_equal_pictures_have_equal_bytes() -> None:
    for kind in ("png", "svg"):
        assert render(picture(), kind) == render(picture(), kind)


def test_the_files_are_what_their_names_say() -> None:
    assert render(picture(), "png").startswith(b"\x89PNG\r\n")
    root = ElementTree.fromstring(render(picture(), "svg"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
