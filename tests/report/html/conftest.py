"""A browser that shows a page.

The pictures that these tests take are kept: in the folder that the environment variable
``SCREENSHOTS`` names, else in the test's temporary folder, where pytest leaves those of the last
three runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import Page, open_browser


@pytest.fixture(scope="package")
def browser() -> Iterator[Page]:
    with open_browser() as page:
        yield page


@pytest.fixture
def page(browser: Page, address: str) -> Iterator[Page]:
    """The page at an address, opened by somebody who was never there; it may ask for nothing."""
    browser.prefer("light")
    browser.resize(1440, 900)
    browser.open(address)
    browser.run("localStorage.clear()")
    browser.problems.clear()
    browser.requests.clear()
    browser.open(address)
    yield browser
    assert browser.problems == []
    assert {one for one in browser.requests if not one.startswith("data:image/svg+xml")} == {
        address
    }


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
