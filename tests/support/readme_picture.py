"""Draws docs/picture.svg, the picture of the README: `python -m tests.support.readme_picture`.

It is what the page of a plan draws of a block in a browser (`tests.support.browser`), in the
colours of the page around it.
"""

import tempfile
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import torch
from torch import nn

import reparam
from tests.support.blocks import ThreeBranches
from tests.support.browser import Page, open_browser
from tests.support.randomise import randomise_batch_norm

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "picture.svg"

_STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.at { font: 10px ui-monospace, monospace; fill: #59636e; }
.head { font-weight: 600; font-size: 15px; }
rect { fill: #eef0f4; stroke: #d5d9e0; }
path { fill: none; stroke: #9aa1ac; stroke-width: 1.2; }
.tip { fill: #9aa1ac; stroke: none; }
.r1 rect { fill: #dbe9fb; stroke: #2a6fdb; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .at { fill: #9aa4b0; }
  rect { fill: #2b3038; stroke: #444c56; }
  .r1 rect { fill: #17345c; stroke: #6aa5f5; }
}
"""
_ARROW = """\
<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" \
orient="auto"><path class="tip" d="M0 0.5L8 4L0 7.5z"/></marker></defs>
"""
_ARROWED = ' marker-end="url(#arrow)"'

_TOP, _GAP = 44, 90

_DRAWN = """(() => {
  const side = document.getElementById("SIDE"), found = (name) => [...side.querySelectorAll(name)];
  return {
    lines: found(".lines path").map((path) => [path.getAttribute("d"), path.matches(".arrow")]),
    boxes: found(".box").map((box) => ({
      at: box.getAttribute("transform"), region: box.dataset.region || "0",
      size: ["width", "height"].map((name) => box.querySelector("rect").getAttribute(name)),
      texts: [...box.querySelectorAll(".name, .at")].map(
        (text) => [text.getAttribute("class"), text.getAttribute("y"), text.textContent]),
    })),
    extent: ((box) => [Math.ceil(box.x + box.width) + 24, Math.ceil(box.y + box.height) + 24])(
      side.querySelector(".level").getBBox()),
  };
})()"""


def picture() -> str:
    """The graph of a block before and after, as SVG."""
    torch.manual_seed(0)
    block = nn.Sequential(ThreeBranches(64)).eval()
    plan = reparam.plan(randomise_batch_norm(block, 0))
    with tempfile.TemporaryDirectory() as folder, open_browser() as page:
        path = Path(folder, "plan.html")
        plan.to_html(path)
        page.open(path.as_uri())
        before, after = _read(page, "before"), _read(page, "after")
    width = before["extent"][0] + _GAP + after["extent"][0]
    height = _TOP + max(before["extent"][1], after["extent"][1])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="A block becomes one convolution">\n'
        f"<style>\n{_STYLE}</style>\n{_ARROW}"
        f"{_drawn(before, 0, 'what you train')}"
        f"{_drawn(after, before['extent'][0] + _GAP, 'what you deploy')}</svg>\n"
    )


def _read(page: Page, side: str) -> dict[str, Any]:
    drawn: dict[str, Any] = page.run(_DRAWN.replace("SIDE", side))
    return drawn


def _drawn(graph: dict[str, Any], left: int, title: str) -> str:
    lines = [f'<g transform="translate({left} {_TOP})">']
    lines.append(f'<text class="head" x="{graph["extent"][0] // 2}" y="-16" text-anchor="middle">')
    lines[-1] += f"{escape(title)}</text>"
    for path, arrow in graph["lines"]:
        lines.append(f'<path d="{path}"{_ARROWED if arrow else ""}/>')
    for box in graph["boxes"]:
        width, height = box["size"]
        lines.append(
            f'<g class="r{box["region"]}" transform="{box["at"]}">'
            f'<rect width="{width}" height="{height}" rx="6"/>'
            f"{''.join(_text(*text) for text in box['texts'])}</g>"
        )
    return "\n".join([*lines, "</g>\n"])


def _text(kind: str, y: str, text: str) -> str:
    shown = ' class="at"' if kind == "at" else ""
    return f'<text{shown} x="9" y="{y}">{escape(text)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
