"""What a page has drawn in a browser, counted: overlaps, lines behind boxes, covered labels."""

from __future__ import annotations

from typing import Any

from tests.support.browser import Page

_BOXES = """
const side = document.getElementById(SIDE);
const shown = (node) => node.getBoundingClientRect();
const boxes = [...side.querySelectorAll(".box, .closed, .opened")].map((node) =>
  ({ name: node.id, ...rectangle(node.querySelector("rect:last-of-type")) }));
const frames = [...side.querySelectorAll(".frame")].map((node) =>
  ({ node, name: "frame", ...rectangle(node.querySelector(".back")) }));
function rectangle(node) {
  const { left, right, top, bottom } = shown(node);
  return { left, right, top, bottom };
}
"""

_OVERLAPS = """
const meet = (one, two) => one.left < two.right - 0.1 && two.left < one.right - 0.1 &&
  one.top < two.bottom - 0.1 && two.top < one.bottom - 0.1;
const found = [];
boxes.sort((one, two) => one.top - two.top);
boxes.forEach((one, index) => {
  for (let next = index + 1; next < boxes.length && boxes[next].top < one.bottom; next += 1) {
    if (meet(one, boxes[next])) found.push([one.name, boxes[next].name]);
  }
});
return found;
"""

_BEHIND = """
const found = [];
const scale = side.querySelector(".scene").getCTM().a;
const edge = Math.max(0.3, 0.8 * scale);
const inside = ({ left, right, top, bottom }, { x, y }) =>
  x > left + edge && x < right - edge && y > top + edge && y < bottom - edge;
for (const path of side.querySelectorAll(".lines path")) {
  const to = path.getScreenCTM(), length = path.getTotalLength(), all = shown(path);
  const near = [...boxes, ...frames.filter(({ node }) => !node.contains(path))].filter((box) =>
    box.left < all.right + 1 && box.right > all.left - 1 &&
    box.top < all.bottom && box.bottom > all.top);
  for (let at = 0; near.length && at <= length; at += Math.max(5 * scale, length / 500)) {
    const point = path.getPointAtLength(at).matrixTransform(to);
    const met = near.find((box) => inside(box, point));
    if (met) { found.push(met.name); break; }
  }
}
return found;
"""

_COVERED = """
const found = [];
for (const node of side.querySelectorAll(".box, .block")) {
  const box = rectangle(node.querySelector("rect:last-of-type"));
  const texts = [...node.querySelectorAll("text")].map(shown);
  const tag = node.querySelector(".tag") && shown(node.querySelector(".tag"));
  const name = shown(node.querySelector(".name"));
  if (tag && name.right > tag.left) found.push(`${node.id}: its number`);
  if (texts.some((text) => text.left < box.left || text.right > box.right)) found.push(node.id);
}
return found;
"""


def _run(page: Page, side: str, script: str) -> Any:
    return page.run(f"(() => {{ {_BOXES.replace('SIDE', repr(side))} {script} }})()")


def assert_legible(page: Page) -> None:
    """No box overlaps another, no line runs behind one, and all labels are seen."""
    for side in ("before", "after"):
        assert _run(page, side, _OVERLAPS) == []
        assert _run(page, side, _BEHIND) == []
        assert _run(page, side, _COVERED) == []


def click_tool(page: Page, side: str, tool: str) -> None:
    """Presses a button above a graph."""
    page.click(f'.pane:has(#{side}) [data-tool="{tool}"]')


def choose(page: Page, selector: str) -> None:
    """Clicks on what is somewhere in a graph, after all of it was moved into sight."""
    click_tool(page, selector.split(maxsplit=1)[0].removeprefix("#"), "fit")
    page.click(selector)


def scale(page: Page, side: str) -> float:
    """How large a graph is drawn."""
    found: float = page.run(f"document.querySelector('#{side} .scene').getCTM().a")
    return found


def place(page: Page, selector: str) -> tuple[float, float, float, float]:
    """Where an element is in the window: left, top, right, bottom."""
    found = page.run(
        f"(() => {{ const box = document.querySelector({selector!r}).getBoundingClientRect();"
        " return [box.left, box.top, box.right, box.bottom]; })()"
    )
    left, top, right, bottom = found
    return left, top, right, bottom


def assert_in_sight(page: Page, selector: str, side: str) -> None:
    """All of an element is seen."""
    box, view = place(page, selector), place(page, f"#{side}")
    assert all(box[at] >= view[at] - 1 for at in (0, 1)), (box, view)
    assert all(box[at] <= view[at] + 1 for at in (2, 3)), (box, view)
