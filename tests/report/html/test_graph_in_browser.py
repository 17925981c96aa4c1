"""The graphs of a page in a real browser: moved, zoomed, opened, closed, saved, and legible."""

from __future__ import annotations

import base64
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.report.html.drawn import (
    assert_in_sight,
    assert_legible,
    choose,
    click_tool,
    place,
    scale,
)
from tests.support.browser import Page, needs_browser
from tests.support.randomise import randomise_batch_norm

pytestmark = needs_browser


LAYERS = 26  # of more operators than are drawn at first


class Layer(nn.Module):
    """As in a network all of whose layers read all layers before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.act = nn.BatchNorm2d(channels), nn.ReLU()
        wide = nn.Conv2d(channels, 8, 1), nn.BatchNorm2d(8), nn.ReLU()
        self.layers = nn.ModuleList([*wide, nn.Conv2d(8, 4, 3, padding=1), nn.BatchNorm2d(4)])

    def forward(self, values: list[Tensor]) -> Tensor:
        x = self.act(self.norm(torch.cat(values, 1)))
        for layer in self.layers:
            x = layer(x)
        return x


class Dense(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.layers = nn.ModuleList(Layer(4 + 4 * index) for index in range(count))

    def forward(self, x: Tensor) -> Tensor:
        values = [self.stem(x)]
        for layer in self.layers:
            values.append(layer(values))
        return torch.cat(values, 1)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "plan.html"
    torch.manual_seed(0)
    model = randomise_batch_norm(Dense(LAYERS).eval(), seed=0)
    reparam.plan(model, example_inputs=torch.randn(1, 3, 8, 8)).to_html(path)
    return path.as_uri()


INPUT = "#before .end"


def test_it_opens_at_the_input(page: Page, pictures: Path) -> None:
    for side in ("before", "after"):
        assert_in_sight(page, f"#{side} .end", side)
        assert page.run(f"document.querySelector('#{side} .end .name').textContent") == "input"
    assert scale(page, "before") >= 0.6
    page.screenshot(pictures / "blocks.png")


def test_what_is_drawn_is_legible_closed_and_open(page: Page, pictures: Path) -> None:
    assert page.count("#before .closed") == LAYERS
    assert_legible(page)
    page.click('[data-blocks="open"]')
    assert page.count("#before .closed") == 0
    assert page.count("#before .opened") == LAYERS
    assert_legible(page)
    page.screenshot(pictures / "blocks_open.png")
    page.click('[data-blocks="close"]')
    assert page.count("#before .closed") == LAYERS


def test_a_block_opens_where_it_is_and_closes_again(page: Page, pictures: Path) -> None:
    page.run("document.querySelector('#before-block-2').scrollIntoView({ block: 'center' })")
    before = place(page, "#before-block-2")
    page.click("#before-block-2")
    assert page.count("#before .opened") == page.count("#after .opened") == 1
    after = place(page, "#before-block-2")
    assert after[1] == pytest.approx(before[1], abs=1)
    assert (after[0] + after[2]) / 2 == pytest.approx((before[0] + before[2]) / 2, abs=3)
    assert page.run("document.querySelector('#before-block-2').getAttribute('aria-expanded')") == (
        "true"
    )
    assert_legible(page)
    page.screenshot(pictures / "block.png")
    page.click("#before-block-2")
    assert page.count("#before .opened") == page.count("#after .opened") == 0


def test_the_keyboard_opens_a_block_and_stays_there(page: Page) -> None:
    page.run("document.querySelector('#before-block-2').focus()")
    page.press("Enter")
    assert page.count("#before .opened") == 1
    assert page.run("document.activeElement.id") == "before-block-2"
    page.press("Enter")
    assert page.count("#before .opened") == 0


def test_a_row_opens_the_blocks_of_its_region(page: Page) -> None:
    page.click('[data-open="20"]')
    assert page.count("#before .opened") == 1
    assert_in_sight(page, '#before .box[data-region="20"]', "before")
    assert_in_sight(page, '#after .box[data-region="20"]', "after")


@pytest.mark.parametrize("turn", [240, -240])
def test_the_wheel_zooms_where_the_pointer_is(page: Page, turn: float) -> None:
    left, top, right, bottom = place(page, f"{INPUT} rect")
    x, y = left + 10, top + 10
    share = ((x - left) / (right - left), (y - top) / (bottom - top))
    size = scale(page, "before")
    page.wheel(x, y, turn)
    assert (scale(page, "before") < size) == (turn > 0)
    left, top, right, bottom = place(page, f"{INPUT} rect")
    assert left + share[0] * (right - left) == pytest.approx(x, abs=1)
    assert top + share[1] * (bottom - top) == pytest.approx(y, abs=1)
    assert page.run("scrollY") == 0


def test_buttons_and_keys_keep_the_middle(page: Page) -> None:
    size = scale(page, "before")
    click_tool(page, "before", "0.8")
    assert scale(page, "before") == pytest.approx(0.8 * size)
    click_tool(page, "before", "1.25")
    assert scale(page, "before") == pytest.approx(size)
    page.run("document.querySelector('#before .end').focus()")
    page.press("+")
    assert scale(page, "before") == pytest.approx(1.25 * size)
    page.press("-")
    assert scale(page, "before") == pytest.approx(size)


def test_a_drag_moves_and_chooses_nothing(page: Page) -> None:
    before = place(page, INPUT)
    start = (before[0] + 20, before[1] + 20)
    page.drag(start, (start[0] + 60, start[1] + 90))
    after = place(page, INPUT)
    assert after[0] - before[0] == pytest.approx(60, abs=1)
    assert after[1] - before[1] == pytest.approx(90, abs=1)
    assert page.count(".details article") == 0
    click_tool(page, "before", "start")
    assert place(page, INPUT) == pytest.approx(before, abs=1)


def test_all_of_it_fits_into_the_window(page: Page, pictures: Path) -> None:
    click_tool(page, "before", "fit")
    for selector in (INPUT, "#before .end:last-of-type"):
        assert_in_sight(page, selector, "before")
    assert_in_sight(page, "#before .level", "before")
    page.screenshot(pictures / "fit.png")


def test_shapes_that_are_known_are_shown(page: Page) -> None:
    texts = page.run("document.querySelector('#before .end').textContent")
    assert "→ 1×3×8×8" in texts
    choose(page, "#before .grey rect")
    assert "1×4×8×8" in page.text(".details article")


def test_a_legend_tells_the_colours(page: Page) -> None:
    assert "operators that become one" in page.text(".legend")
    assert page.count(".legend .swatch") == 4


def exported(page: Page, side: str, kind: str) -> bytes:
    """What a button saves."""
    page.run("Export.save = (blob) => { window.saved = blob; }; window.saved = null")
    click_tool(page, side, kind)
    data = page.run(
        "(async () => { while (!window.saved) await new Promise((next) => setTimeout(next, 20));"
        " const bytes = new Uint8Array(await window.saved.arrayBuffer());"
        " return btoa([...bytes].map((byte) => String.fromCharCode(byte)).join('')); })()"
    )
    return base64.b64decode(data)


def test_a_graph_is_saved_as_svg(page: Page, pictures: Path) -> None:
    source = exported(page, "before", "svg").decode()
    (pictures / "saved.svg").write_text(source, encoding="utf-8")
    root = ElementTree.fromstring(source)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "input" in texts
    assert any("Layer" in (text or "") for text in texts)
    styles: list[Any] = [element.get("fill") for element in root.iter()]
    assert all("var(" not in (style or "") for style in styles), "it needs no page around it"
    assert "style=" not in source


def test_a_graph_is_saved_as_png(page: Page, pictures: Path) -> None:
    data = exported(page, "after", "png")
    (pictures / "saved.png").write_bytes(data)
    assert data.startswith(b"\x89PNG")
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert width > 500
    assert height > 4000


def test_what_is_drawn_grows_with_what_is_seen(page: Page) -> None:
    """Counted: the points that are laid out, for chains with values that are read far below."""
    counts = page.run(
        """[400, 800, 1600].map((size) => {
          const vertices = Array.from({ length: size }, (_, at) => [
            0, 0, 2 + Math.floor(at / 40), 0, 0, 0, 0,
            at ? [at - 1, ...(at > 30 ? [at - 30] : [])] : []]);
          const blocks = [[0, 0, -1], [0, 0, 0],
            ...Array.from({ length: size / 40 }, () => [0, 0, 1])];
          const graph = new Graph({ texts: [""], blocks, before: vertices }, "before");
          const count = (layout) => layout.points +
            layout.boxes.reduce((sum, { inner }) => sum + (inner.boxes ? count(inner) : 0), 0);
          const every = new Set(blocks.map((_, number) => number));
          return Layout.whole(graph, every, false).boxes.reduce(
            (sum, { inner }) => sum + (inner.boxes ? count(inner) : 0), 0);
        })"""
    )
    few, more, most = counts
    assert most - more == pytest.approx(2 * (more - few), rel=0.02)
