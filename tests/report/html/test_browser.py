"""The page in a real browser: with the mouse, with the keyboard, light and dark.

The pictures that these tests take are kept: in the folder that the environment variable
``SCREENSHOTS`` names, else in the test's temporary folder, where pytest leaves those of the last
three runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

import reparam
from tests.support import small_repvgg
from tests.support.browser import Page, needs_browser, open_browser

pytestmark = needs_browser

OPEN = ".details article:not([hidden])"
FOCUSED = "document.activeElement.dataset.region"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "plan.html"
    layers = small_repvgg.build("plain"), nn.Tanh(), nn.BatchNorm1d(small_repvgg.CLASSES)
    reparam.plan(nn.Sequential(*layers).eval()).to_html(path)
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with open_browser() as page:
        yield page


@pytest.fixture
def page(browser: Page, address: str) -> Iterator[Page]:
    browser.prefer("light")
    browser.resize(1440, 900)
    browser.open(address)
    browser.run("localStorage.clear()")
    browser.open(address)
    browser.problems.clear()
    browser.requests.clear()
    browser.open(address)
    yield browser
    assert browser.problems == []
    assert set(browser.requests) == {address}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def background(page: Page) -> int:
    """How light the page is."""
    found: str = page.run("getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in found.removeprefix("rgb(").removesuffix(")").split(","))


def test_it_opens_without_a_word(page: Page, pictures: Path) -> None:
    assert page.count(OPEN) == 0
    assert page.count("#before .region") == page.count("#after .region") == 8
    assert page.screenshot(pictures / "opened.png").stat().st_size > 10_000


def test_a_click_on_a_region_opens_it(page: Page, pictures: Path) -> None:
    page.click('#before .region[data-region="4"] rect')
    assert page.count(OPEN) == 1
    text = page.text(OPEN)
    assert "v = Krbr_dense ⋆ x + Krbr_1x1 ⋆ x + Krbr_identity ⋆ x + c" in text
    assert "0.stage2.1.rbr_dense.conv" in text
    assert "verified in float64" in text
    assert page.count(f"{OPEN} .heat svg rect") > 9
    assert page.count('.region[aria-pressed="true"]') == 2
    assert page.run("document.querySelector('tr[aria-current]').dataset.row") == "4"
    page.screenshot(pictures / "region.png")
    page.click('#after .region[data-region="5"] rect')
    assert page.count(OPEN) == 1
    assert page.run(f"document.querySelector('{OPEN}').id") == "region-5"


def test_the_other_graph_shows_its_operator(page: Page) -> None:
    page.click('#before .region[data-region="8"] rect')
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
        if page.run(FOCUSED):
            break
    assert page.run(FOCUSED) == "1"
    page.press("ArrowDown")
    page.press("ArrowDown")
    assert page.run(FOCUSED) == "3"
    page.press(key)
    assert page.run(f"document.querySelector('{OPEN}').id") == "region-3"
    assert "Region 3 is open" in page.run("document.querySelector('#said').textContent")
    page.screenshot(pictures / "keyboard.png")
    page.press("End")
    page.press("Tab")
    assert page.run("document.activeElement.closest('#before .region, #before .stays')") is None


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


def test_what_stays_leads_to_its_reason(page: Page) -> None:
    page.click("#before .stays rect")
    assert page.run("document.querySelector('tr:target').innerText").startswith("2\tBatchNorm1d")


def test_light_and_dark(page: Page, pictures: Path) -> None:
    light = background(page)
    page.click("#theme")
    assert background(page) < light / 4
    assert page.run("document.querySelector('#theme').getAttribute('aria-pressed')") == "true"
    page.click('#before .region[data-region="3"] rect')
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


def test_graphs_become_smaller_and_larger(page: Page) -> None:
    width = "Number(document.querySelector('#before svg').getAttribute('width'))"
    before = page.run(width)
    page.click('[data-side="before"][data-factor="0.8"]')
    assert page.run(width) == pytest.approx(0.8 * before)
    page.click('[data-side="before"][data-factor="1.25"]')
    assert page.run(width) == pytest.approx(before)
