"""Draws docs/picture.svg, the picture of the README: `python -m tests.support.readme_picture`."""

from pathlib import Path
from xml.sax.saxutils import escape

import torch
from torch import nn

import reparam
from reparam.report.html.drawn_graphs import graph_after, graph_before
from reparam.report.html.graph_layout import BOX, Layout, lay_out
from reparam.report.rows import fused_row
from tests.support.blocks import ThreeBranches
from tests.support.randomise import randomise_batch_norm

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "picture.svg"

_STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.at { font: 10px ui-monospace, monospace; fill: #59636e; }
.head { font-weight: 600; font-size: 15px; }
rect { fill: #eef0f4; stroke: #d5d9e0; }
path { fill: none; stroke: #9aa1ac; stroke-width: 1.2; }
.r1 rect { fill: #dbe9fb; stroke: #2a6fdb; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .at { fill: #9aa4b0; }
  rect { fill: #2b3038; stroke: #444c56; }
  .r1 rect { fill: #17345c; stroke: #6aa5f5; }
}
"""
_TOP, _GAP = 44, 90


def picture() -> str:
    """The graph of a block before and after, as SVG."""
    torch.manual_seed(0)
    block = nn.Sequential(ThreeBranches(64)).eval()
    plan = reparam.plan(randomise_batch_norm(block, 0))
    (planned,) = plan._parts
    part, regions = planned.part, planned.decision.regions
    numbers = {region: number for number, region in enumerate(regions, 1)}
    results = {number: fused_row(part, region).result for region, number in numbers.items()}
    before = lay_out(graph_before(part, numbers, {}))
    after = lay_out(graph_after(part, numbers, {}, results))
    width = before.width + _GAP + after.width
    height = _TOP + max(before.height, after.height)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="A block becomes one convolution">\n'
        f"<style>\n{_STYLE}</style>\n"
        f"{_drawn(before, 0, 'what you train')}"
        f"{_drawn(after, before.width + _GAP, 'what you deploy')}</svg>\n"
    )


def _drawn(layout: Layout, left: int, title: str) -> str:
    lines = [f'<g transform="translate({left} {_TOP})">']
    lines.append(f'<text class="head" x="{layout.width // 2}" y="-16" text-anchor="middle">')
    lines[-1] += f"{escape(title)}</text>"
    lines += [f'<path d="{line}"/>' for line in layout.lines]
    for vertex, (x, y) in zip(layout.graph.vertices, layout.corners, strict=True):
        lines.append(
            f'<g class="r{vertex.region or 0}" transform="translate({x} {y})">'
            f'<rect width="{BOX[0]}" height="{BOX[1]}" rx="6"/>'
            f'<text x="9" y="17">{escape(vertex.title)}</text>'
            f'<text class="at" x="9" y="32">{escape(vertex.place)}</text></g>'
        )
    return "\n".join([*lines, "</g>\n"])


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
