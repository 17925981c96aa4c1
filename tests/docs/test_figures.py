"""Every law has a figure on the page that explains it, which the build draws from the law."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from generate.figures import FIGURES
from generate.svg import Grid, Sign, figure, number, spoken
from hooks import on_page_markdown

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
SVG = "{http://www.w3.org/2000/svg}"


def drawn(html: str) -> ET.Element:
    """The figure, parsed; it must be well-formed, and hold no blank line that ends raw HTML."""
    assert "\n\n" not in html
    root = ET.fromstring(html)
    assert root.tag == "figure"
    return root


def texts(root: ET.Element, kind: str) -> list[str]:
    return [one.text or "" for one in root.iter(f"{SVG}text") if one.get("class") == kind]


def test_every_figure_stands_on_the_page() -> None:
    assert sorted(re.findall(r"<!-- figure: (\S+) -->", PAGE)) == sorted(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_complete(name: str) -> None:
    html = FIGURES[name]()
    assert html == FIGURES[name](), "a figure is drawn the same each time"
    root = drawn(html)
    assert root.get("id") == f"figure-{name}"
    image = root.find(f"{SVG}svg")
    assert image is not None
    assert image.get("role") == "img"
    assert len(image.get("aria-label", "")) > 80, "it is described to those who do not see it"
    assert any(text.startswith("✗ ") for text in texts(root, "refused"))
    caption = root.find("figcaption")
    assert caption is not None
    assert caption.text


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_no_colours_of_its_own(name: str) -> None:
    assert not re.search(
        r'(fill|stroke|color|style)="', FIGURES[name]().replace("fill-opacity", "")
    )


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_drawn_outside(name: str) -> None:
    image = drawn(FIGURES[name]()).find(f"{SVG}svg")
    assert image is not None
    _, _, width, height = map(float, image.get("viewBox", "").split())
    for cell in image.iter(f"{SVG}rect"):
        right, bottom = (
            float(cell.get(a, 0)) + float(cell.get(b, 0))
            for a, b in ("x width".split(), "y height".split())
        )
        assert right <= width + 1
        assert bottom <= height + 1


def test_the_kernels_are_those_of_the_laws() -> None:
    """The composed kernel of the first figure, by torch alone: a convolution of the kernels."""
    first = torch.tensor([1.0, 2.0, 1.0]).view(1, 1, 3, 1)
    second = torch.tensor([-1.0, 0.0, 2.0]).view(1, 1, 1, 3)
    image = torch.nn.functional.pad(first, (2, 2))
    whole = torch.nn.functional.conv2d(image, second.flip(-1))[0, 0]
    assert spoken(whole) in FIGURES["sequence"]()


def test_a_comment_becomes_its_figure() -> None:
    page = on_page_markdown("before\n\n<!-- figure: sequence -->\n\nafter\n")
    assert page == f"before\n\n{FIGURES['sequence']()}\n\nafter\n"
    with pytest.raises(KeyError):
        on_page_markdown("<!-- figure: nothing -->")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (2.0, "2"),
        (-1.0, "−1"),
        (0.25, "0.25"),
        (1 / 9, "1/9"),
        (0.1 + 0.2, "0.3"),
        (-10 / 9, "−10/9"),
        (0.123456, "0.12"),
    ],
)
def test_numbers_are_short(value: float, written: str) -> None:
    assert number(value) == written


def test_what_is_written_in_a_figure_is_escaped() -> None:
    html = figure("a", [[Grid(torch.ones(1, 1), "<b>"), Sign("&")]], said='"<', caption="<i>")
    root = drawn(html)
    assert texts(root, "name") == ["<b>"]
    assert texts(root, "sign") == ["&"]
