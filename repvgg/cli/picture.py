"""Draws the demo's picture: the network before and after fusing, and how long both take."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path

from reparam.deployment import Comparison
from repvgg.cli.operations import INPUT, Operation, count_kinds

# Lengths are inches on a page of this size, from its lower left corner.
_WIDTH, _HEIGHT = 12.0, 7.6
_MARGIN = 0.5
_PIXELS_PER_INCH = 160

_COLORS = {
    "convolution": "#3566a8",
    "batch norm": "#bd7a1e",
    "addition": "#4b8f63",
    "ReLU": "#a84b58",
    "linear": "#75619e",
    "other": "#8d96a0",
}
_INK, _MUTED, _LINE = "#22272e", "#5d6772", "#98a1ab"
_TRAINED, _FUSED = "#b4bcc5", "#3566a8"


@dataclass(frozen=True)
class Form:
    """What is drawn of one form of the network: all its operations, and those of one block."""

    network: Sequence[Operation]
    block: Sequence[Operation]


@dataclass(frozen=True)
class _Style:
    """How large a graph is drawn."""

    column: float
    lane: float
    box: tuple[float, float]
    labelled: bool


_LARGE = _Style(column=1.12, lane=0.62, box=(0.92, 0.36), labelled=True)
_SMALL = _Style(column=0.252, lane=0.235, box=(0.18, 0.16), labelled=False)


def draw(
    trained: Form, fused: Form, comparisons: Sequence[Comparison], *, summary: str, machine: str
) -> Figure:
    """Draws the picture.

    Args:
        trained: The network as it was trained.
        fused: The same network, fused.
        comparisons: The latencies, one for each batch size.
        summary: What both forms have in common, in one line.
        machine: What the latencies were measured on, in one line.
    """
    figure = Figure(figsize=(_WIDTH, _HEIGHT), facecolor="white")
    page = figure.add_axes((0, 0, 1, 1), xlim=(0, _WIDTH), ylim=(0, _HEIGHT))
    page.axis("off")
    _write(page, _MARGIN, 7.16, "RepVGG before and after reparam.fuse", size=19, weight="bold")
    _write(page, _MARGIN, 6.80, summary, size=10.5, color=_MUTED)

    _draw_caption(page, _MARGIN, 6.24, "One block as trained", trained.block)
    _draw_graph(page, _MARGIN, 5.20, trained.block, _LARGE)
    _draw_caption(page, 7.9, 6.24, "The same block, fused", fused.block)
    _draw_graph(page, 7.9, 5.20, fused.block, _LARGE)

    x = _draw_caption(page, _MARGIN, 3.96, "The network as trained", trained.network)
    _draw_legend(page, x + 0.3, 3.96, trained.network)
    _draw_graph(page, _MARGIN, 3.46, trained.network, _SMALL)
    _draw_caption(page, _MARGIN, 2.74, "The network, fused", fused.network)
    _draw_legend(page, x + 0.3, 2.74, fused.network)
    _draw_graph(page, _MARGIN, 2.42, fused.network, _SMALL)

    column = (_WIDTH - 2 * _MARGIN) / len(comparisons)
    for index, comparison in enumerate(comparisons):
        _draw_latencies(page, _MARGIN + index * column, 1.72, column, comparison)
    _write(page, _MARGIN, 0.34, machine, size=8.5, color=_MUTED)
    return figure


def render(figure: Figure, kind: Literal["png", "svg"]) -> bytes:
    """Renders the figure; equal figures give equal bytes."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    with matplotlib.rc_context({"svg.hashsalt": "repvgg"}):
        figure.savefig(buffer, format=kind, dpi=_PIXELS_PER_INCH, metadata=metadata)
    return buffer.getvalue()


def arrange(operations: Sequence[Operation]) -> list[tuple[int, int]]:
    """Places each operation in a column and a lane.

    The column is the length of the longest way from the input, which stands in column 0 and lane 0.
    The first reader of a value stays in its lane; any other opens the nearest lane that is free.

    Returns:
        Column and lane of each operation; lanes count upwards from 0, the middle.
    """
    places: list[tuple[int, int]] = []
    continued: set[int] = set()
    occupied_until = {0: 0}
    for operation in operations:
        sources = [_source(places, value) for value in operation.inputs or (INPUT,)]
        column = 1 + max(column for column, _ in sources)
        lane = sources[0][1]
        first = operation.inputs[0] if operation.inputs else INPUT
        if first in continued:
            lane = next(lane for lane in _lanes() if occupied_until.get(lane, -1) < column)
        continued.add(first)
        places.append((column, lane))
        occupied_until[lane] = column
    return places


def _lanes() -> Iterable[int]:
    """Yields 1, -1, 2, -2 and so on."""
    lane = 1
    while True:
        yield from (lane, -lane)
        lane += 1


def _source(places: Sequence[tuple[int, int]], value: int) -> tuple[int, int]:
    return (0, 0) if value == INPUT else places[value]


def _draw_graph(
    page: Axes, left: float, middle: float, operations: Sequence[Operation], style: _Style
) -> None:
    """Draws the operations from left to right, the main lane at the height `middle`."""
    width, height = style.box
    if style.labelled:
        left = _write(page, left, middle, "x", size=11) + 0.08

    def point(column: float, lane: float) -> tuple[float, float]:
        x = left + max(0.0, column * style.column - width / 2)
        return x, middle + lane * style.lane

    places = arrange(operations)
    for operation, (column, lane) in zip(operations, places, strict=True):
        for value in operation.inputs:
            start, start_lane = _source(places, value)
            # A branch leaves right behind its source and returns right at its target.
            bend = start + 0.5 if abs(lane) > abs(start_lane) else column
            corners = ((start, start_lane), (bend, start_lane), (bend, lane), (column, lane))
            _draw_line(page, [point(*corner) for corner in corners])
    last = point(*places[-1])
    end = last[0] + style.column - 0.3 * width
    _draw_line(page, [last, (end, last[1])])
    page.plot(end, last[1], marker=">", markersize=5, color=_LINE)

    for operation, place in zip(operations, places, strict=True):
        x, y = point(*place)
        sign = operation.label == "+" and style.labelled
        _draw_box(page, x, y, height if sign else width, height, _COLORS[operation.kind])
        if style.labelled:
            _write(page, x, y, operation.label, size=9.5, color="white", align="center")


def _draw_box(page: Axes, x: float, y: float, width: float, height: float, color: str) -> None:
    shape = f"round,pad=0,rounding_size={0.2 * height}"
    corner = (x - width / 2, y - height / 2)
    page.add_patch(
        FancyBboxPatch(
            corner, width, height, boxstyle=shape, facecolor=color, linewidth=0, zorder=2
        )
    )


def _draw_line(page: Axes, corners: Sequence[tuple[float, float]]) -> None:
    """Draws a line with rounded corners."""
    first, *between, last = corners
    points, codes = [first], [Path.MOVETO]
    for corner, after in pairwise([*between, last]):
        before = points[-1]
        if corner[1] == before[1] == after[1] or corner[0] == before[0] == after[0]:
            continue
        points += [_towards(corner, before), corner, _towards(corner, after)]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    path = Path([*points, last], [*codes, Path.LINETO])
    page.add_patch(PathPatch(path, facecolor="none", edgecolor=_LINE, linewidth=1.3, zorder=1))


def _towards(corner: tuple[float, float], target: tuple[float, float]) -> tuple[float, float]:
    """Moves from a corner a little, at most half the way, towards a target."""
    across, up = target[0] - corner[0], target[1] - corner[1]
    share = min(0.06 / max(abs(across), abs(up)), 0.5)
    return corner[0] + share * across, corner[1] + share * up


def _draw_caption(
    page: Axes, x: float, y: float, title: str, operations: Sequence[Operation]
) -> float:
    x = _write(page, x, y, title, size=11.5, weight="bold")
    return _write(page, x + 0.14, y, f"{len(operations)} operations", size=11)


def _draw_legend(page: Axes, x: float, y: float, operations: Sequence[Operation]) -> None:
    """Draws how often each kind occurs, which also names the colors."""
    counts = count_kinds(operations)
    for kind, color in _COLORS.items():
        if count := counts[kind]:
            many = count > 1 and kind not in ("linear", "other")
            _draw_box(page, x + 0.07, y, 0.14, 0.14, color)
            x = _write(page, x + 0.2, y, f"{count} {kind}{'s' if many else ''}", size=9.5) + 0.22


def _draw_latencies(
    page: Axes, left: float, top: float, width: float, comparison: Comparison
) -> None:
    """Draws the medians as bars and the quartiles as lines on them."""
    images = "1 image" if comparison.batch == 1 else f"{comparison.batch} images"
    x = _write(page, left, top, f"Latency for {images}", size=11.5, weight="bold")
    _write(page, x + 0.14, top, f"{comparison.speedup:.2f}× faster", size=11)
    rows = (("as trained", comparison.original, _TRAINED), ("fused", comparison.fused, _FUSED))
    start = left + 0.9
    slowest = max(comparison.original.median, comparison.fused.median)
    inches_per_second = 0.55 * width / slowest
    for index, (name, latency, color) in enumerate(rows):
        y = top - 0.4 - 0.36 * index
        _write(page, left, y, name, size=9.5)
        median, low, high = (
            # The quartiles of a busy machine may lie far beyond the page.
            start + inches_per_second * min(seconds, 1.15 * slowest)
            for seconds in (latency.median, latency.low, latency.high)
        )
        page.broken_barh([(start, median - start)], (y - 0.12, 0.24), facecolor=color)
        page.hlines(y, low, high, color=_INK, linewidth=1.4)
        _write(page, max(median, high) + 0.1, y, f"{latency.median * 1e3:.2f} ms", size=9.5)


def _write(
    page: Axes,
    x: float,
    y: float,
    text: str,
    *,
    size: float,
    color: str = _INK,
    weight: Literal["normal", "bold"] = "normal",
    align: Literal["left", "center"] = "left",
) -> float:
    """Writes one line of text and returns where it ends."""
    drawn = page.text(
        x, y, text, size=size, color=color, weight=weight, ha=align, va="center_baseline", zorder=3
    )
    return float(page.transData.inverted().transform(drawn.get_window_extent())[1, 0])
