"""The page in a real browser: with the mouse, with the keyboard, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

import reparam
from tests.report.html.drawn import choose
from tests.support import small_repvgg
from tests.support.browser import Page, needs_browser

pytestmark = needs_browser

OPEN = ".details article"
FOCUSED = "document.activeElement.dataset.region"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "plan.html"
    layers = small_repvgg.build("plain"), nn.Tanh(), nn.BatchNorm1d(small_repvgg.CLASSES)
    reparam.plan(nn.Sequential(*layers).eval()).to_html(path)
    return path.as_uri()


def background(page: Page) -> int:
    """How light the page is."""
    found: str = page.run("getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in found.removeprefix("rgb(").removesuffix(")").split(","))


def regions(side: str) -> str:
    """The numbers of the regions that are drawn."""
    found = f"[...document.querySelectorAll('#{side} .region')].map((box) => +box.dataset.region)"
    return f"[...new Set({found})].sort((one, two) => one - two)"


def test_it_opens_without_a_word(page: Page, pictures: Path) -> None:
    assert page.count(OPEN) == 0
    assert page.run(regions("before")) == page.run(regions("after")) == [*range(1, 9)]
    assert page.screenshot(pictures / "opened.png").stat().st_size > 10_000


def test_a_click_on_a_region_opens_it(page: Page, pictures: Path) -> None:
    choose(page, '#before .region[data-region="4"] rect')
    assert page.count(OPEN) == 1
    text = page.text(OPEN)
    assert "v = Krbr_dense ⋆ x + Krbr_1x1 ⋆ x + Krbr_identity ⋆ x + c" in text
    assert "0.stage2.1.rbr_dense.conv" in text
    assert "verified in float64" in text
    assert page.count(f"{OPEN} .heat svg rect") > 9
    pressed = "[...document.querySelectorAll('.box[aria-pressed=true]')]"
    assert page.run(f"{pressed}.every((box) => box.dataset.region === '4')")
    assert page.count('#after .box[aria-pressed="true"]') == 1
    assert page.count('#before .box[aria-pressed="true"]') > 1
    assert page.run("document.querySelector('tr[aria-current]').dataset.row") == "4"
    page.screenshot(pictures / "region.png")
    choose(page, '#after .region[data-region="5"] rect')
    assert page.count(OPEN) == 1
    assert page.run(f"document.querySelector('{OPEN}').id") == "region-5"


def test_the_other_graph_shows_its_operator(page: Page) -> None:
    choose(page, '#before .region[data-region="8"] rect')
    inside = page.run(
        "(() => { const one = document.querySelector('#after .region[data-region=\"8\"]')"
        ".getBoundingClientRect(), all = document.querySelector('#after').getBoundingClientRect();"
        " return one.top >= all.top && one.bottom <= all.bottom; })()"
    )
    assert inside


@pytest.mark.parametrize("key", ["Enter", " "])
def test_the_keyboard_does_the_same(page: Page, key: str, pictures: Path) -> None:
    for _ in range(30):
        page.press("Tab")
        if page.run("document.activeElement.closest('#before') !== null"):
            break
    assert page.run("document.activeElement.getAttribute('aria-label')") == "input, input_1"
    for _ in range(9):
        page.press("ArrowDown")
        if page.run(FOCUSED) == "1":
            break
    assert page.run(FOCUSED) == "1"
    box = page.run("document.activeElement.id")
    page.press("ArrowDown")
    assert page.run("document.activeElement.id") != box
    page.press("ArrowUp")
    assert page.run("document.activeElement.id") == box
    page.press(key)
    assert page.run(f"document.querySelector('{OPEN}').id") == "region-1"
    assert "Region 1 is open" in page.run("document.querySelector('#said').textContent")
    page.screenshot(pictures / "keyboard.png")
    page.press("End")
    assert page.run("document.activeElement.closest('#before') !== null")
    page.press("Tab")
    assert page.run("document.activeElement.closest('#before') === null")


def test_a_row_of_the_table_opens_its_region(page: Page) -> None:
    page.click('[data-open="2"]')
    assert page.run(f"document.querySelector('{OPEN}').id") == "region-2"


def test_the_search_filters_both_tables(page: Page, pictures: Path) -> None:
    rows = page.count("#tables tbody tr")
    page.click("#search")
    page.write("Stage2 add")
    assert page.count(".fused tbody tr") == 2
    assert page.count(".refused tbody tr") == 0
    assert page.text("#found") == f"2 of {rows} shown"
    page.run("document.querySelector('#tables').scrollIntoView()")
    page.screenshot(pictures / "search.png")
    page.run("document.querySelector('#search').select()")
    page.write("not affine")
    assert page.count(".fused tbody tr") == 0
    assert page.count(".refused tbody tr") == 1
    page.run("document.querySelector('#search').select()")
    page.write(" ")
    assert page.count("#tables tbody tr") == rows


def test_what_stays_says_why_and_leads_to_its_row(page: Page) -> None:
    choose(page, "#before .stays rect")
    text = page.text(OPEN)
    assert text.startswith("BatchNorm1d\n2")
    assert "not affine" in text
    page.click(f"{OPEN} a")
    assert page.run("document.querySelector('tr:target').innerText").startswith("2\tBatchNorm1d")


def test_what_is_grey_has_details(page: Page, pictures: Path) -> None:
    choose(page, "#before .grey[aria-label^=Tanh] rect")
    text = page.text(OPEN)
    assert text.startswith("Tanh\n1")
    assert "It is not affine" in text
    page.screenshot(pictures / "grey.png")
    page.click(f"{OPEN} .link")
    assert "Linear" in page.text(OPEN)


def test_light_and_dark(page: Page, pictures: Path) -> None:
    light = background(page)
    page.click("#theme")
    assert background(page) < light / 4
    assert page.run("document.querySelector('#theme').getAttribute('aria-pressed')") == "true"
    choose(page, '#before .region[data-region="3"] rect')
    page.screenshot(pictures / "dark.png")
    page.click("#theme")
    assert background(page) == light


def test_dark_where_the_system_is(page: Page, address: str) -> None:
    light = background(page)
    page.prefer("dark")
    page.open(address)
    assert background(page) < light / 4


def test_a_narrow_window_has_one_column(page: Page, pictures: Path) -> None:
    page.resize(420, 900)
    assert page.run("document.documentElement.scrollWidth") <= 420
    page.screenshot(pictures / "narrow.png")
    assert page.run("document.querySelector('#details').getBoundingClientRect().top") > 900
    page.click("#before .end rect")
    top = page.run(f"document.querySelector('{OPEN}').getBoundingClientRect().top")
    assert 0 <= top < 450, "a click brings the details into view"
    page.screenshot(pictures / "narrow_details.png")
