"""The pages of large networks: small, opened at once at the input, and legible."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import reparam
from tests.corpora.ultralytics_networks import UltralyticsNetwork
from tests.report.html.drawn import assert_in_sight, assert_legible, scale
from tests.support.browser import Page, needs_browser
from tests.support.randomise import randomise_batch_norm

pytestmark = [needs_browser, pytest.mark.corpus]


def chain() -> nn.Module:
    """Six thousand operators, one after the other, in a single module."""
    kinds = (nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(*[layer for _ in range(2000) for layer in kinds])


def of_timm(name: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, pretrained=False)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{
        name: of_timm(name)
        for name in ("repvgg_a0", "ghostnetv3_100", "densenet201", "hrnet_w18", "nasnetalarge")
    },
    "yolo11n": UltralyticsNetwork("yolo11n").construct,
    "chain": chain,
}


@pytest.fixture(scope="module", params=NETWORKS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("page") / f"{request.param}.html"
    torch.manual_seed(0)
    model = randomise_batch_norm(NETWORKS[request.param]().eval(), seed=0)
    reparam.plan(model).to_html(path, verify=False)
    return path


@pytest.fixture
def address(written: Path) -> str:
    return written.as_uri()


def test_it_is_small_and_opens_at_the_input(page: Page, written: Path, pictures: Path) -> None:
    assert written.stem == "chain" or written.stat().st_size < 2_000_000
    for side in ("before", "after"):
        assert page.run(f"document.querySelector('#{side} .end .name').textContent") == "input"
        assert_in_sight(page, f"#{side} .end", side)
        assert 2 < page.count(f"#{side} .box, #{side} .closed") <= 200
    assert scale(page, "before") >= 0.6
    page.screenshot(pictures / f"{written.stem}.png")
    taken = page.run("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert taken < 12_000  # milliseconds; less than two seconds on an idle machine


def test_it_is_legible_as_it_opens(page: Page) -> None:
    assert_legible(page)


def test_it_is_legible_with_all_blocks_open(page: Page, written: Path, pictures: Path) -> None:
    page.click('[data-blocks="open"]')
    assert page.count("#before .closed") == 0
    assert_legible(page)
    page.screenshot(pictures / f"{written.stem}_open.png")
