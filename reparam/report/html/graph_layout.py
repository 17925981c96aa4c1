"""Where the operators of a graph are drawn, and along which lines: in layers, by igraph.

An operator lies one layer below the lowest one that it reads. An edge that crosses layers bends at
a point in each of them, for which the layout keeps room; one that crosses very many runs beside the
graph, since those points would be more than the operators. From igraph comes the order within each
layer, and a first place; then every chain moves to the mean of its neighbours, as near as there is
room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import igraph

from reparam.report.html.drawn_graphs import DrawnGraph

BOX = (184, 40)
"""Width and height of an operator."""

_COLUMN, _BEND, _ROW = 204, 28, 66

_MARGIN = 24

_LANE, _LANES = 7, 10

_LONGEST = 40

_BENDS = 8  # at most so many points per operator

_SWEEPS = 40

Point = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """A graph that has its places.

    Args:
        graph: The graph.
        corners: For each operator its upper left corner.
        lines: For each edge its path, as SVG writes it.
        width: Width of the whole.
        height: Height of the whole.
    """

    graph: DrawnGraph
    corners: tuple[Point, ...]
    lines: tuple[str, ...]
    width: int
    height: int


def lay_out(graph: DrawnGraph) -> Layout:
    """Give each operator a place and each edge a line.

    Args:
        graph: The graph.

    Returns:
        The layout.

    Examples:
        >>> from reparam.report.html.drawn_graphs import DrawnGraph, Vertex
        >>> from reparam.report.html.graph_layout import lay_out
        >>> chain = DrawnGraph((Vertex("input", "x"), Vertex("Conv2d", "0")), ((0, 1),))
        >>> [y for _, y in lay_out(chain).corners]
        [24, 90]
    """
    layers = _layers(graph)
    bent = _bent(graph, layers)
    points, edges, chains = list(layers), list[tuple[int, int]](), dict[int, list[int]]()
    for number in bent:
        source, target = graph.edges[number]
        chain = [source]
        for layer in range(layers[source] + 1, layers[target]):
            chain.append(len(points))
            points.append(layer)
        chain.append(target)
        chains[number] = chain
        edges.extend(pairwise(chain))
    middles = _middles(points, edges, len(layers))
    boxes = max(middles[: len(layers)], default=0) + BOX[0] // 2
    right = max(boxes, *middles, 0) + _MARGIN
    lines: list[str] = []
    beside = 0
    for number, (source, target) in enumerate(graph.edges):
        if number in chains:
            at = [(middles[point], _MARGIN + points[point] * _ROW) for point in chains[number]]
            lines.append(_line(at))
        else:
            lane = right + _LANE * (beside % _LANES)
            beside += 1
            start, end = (
                (middles[one] + BOX[0] // 2, _MARGIN + layers[one] * _ROW + BOX[1] // 2)
                for one in (source, target)
            )
            lines.append(_line_beside(start, end, lane))
    width = right + _LANE * min(beside, _LANES)
    corners = [
        (middles[index] - BOX[0] // 2, _MARGIN + layer * _ROW) for index, layer in enumerate(layers)
    ]
    height = 2 * _MARGIN + BOX[1] + _ROW * max(layers, default=0)
    return Layout(graph, tuple(corners), tuple(lines), width, height)


def _middles(points: Sequence[int], edges: Sequence[tuple[int, int]], boxes: int) -> list[int]:
    """Where the middle of each point is, from left to right.

    Args:
        points: The layer of each point, those of the operators first.
        edges: Pairs of points in layers that follow each other.
        boxes: How many of the points are operators.
    """
    if not points:
        return []
    placed = igraph.Graph(len(points), edges, directed=True).layout_sugiyama(layers=points)
    at = [x * _COLUMN for x, _ in placed]
    rows: dict[int, list[int]] = {}
    for point in sorted(range(len(points)), key=at.__getitem__):
        rows.setdefault(points[point], []).append(point)
    offsets: dict[int, list[float]] = {}
    for layer, row in rows.items():
        offsets[layer] = [0.0]
        for one, two in pairwise(row):
            room = _COLUMN if one < boxes and two < boxes else (_COLUMN + _BEND) / 2
            room = _BEND if one >= boxes and two >= boxes else room
            offsets[layer].append(offsets[layer][-1] + room)
    near: list[list[int]] = [[] for _ in points]
    for source, target in edges:
        near[source].append(target)
        near[target].append(source)
    columns = _columns(len(points), edges)
    for _ in range(_SWEEPS):
        wanted = list(at)
        for column in columns:
            ends = [other for point in column for other in near[point]]
            means = [at[other] for other in ends] or [at[column[0]]]
            for point in column:
                wanted[point] = sum(means) / len(means)
        _settle(at, wanted, rows, offsets)
    left = min(at[:boxes], default=0.0)
    left = min(left, min(at) + BOX[0] / 2)
    return [round(_MARGIN + BOX[0] / 2 + x - left) for x in at]


def _columns(count: int, edges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The points in chains without another reader or another operand: one below the other."""
    after: list[list[int]] = [[] for _ in range(count)]
    before: list[list[int]] = [[] for _ in range(count)]
    for source, target in edges:
        after[source].append(target)
        before[target].append(source)
    columns: list[list[int]] = []
    for point in range(count):
        if len(before[point]) == 1 and len(after[before[point][0]]) == 1:
            continue  # it is in the column of what it reads
        column = [point]
        while len(after[column[-1]]) == 1 and len(before[after[column[-1]][0]]) == 1:
            column.append(after[column[-1]][0])
        columns.append(column)
    return columns


def _settle(
    at: list[float],
    wanted: Sequence[float],
    rows: Mapping[int, Sequence[int]],
    offsets: Mapping[int, Sequence[float]],
) -> None:
    """Move the points of each layer as near to where they want to be as the room between allows.

    Without their offsets the places must not decrease, and the nearest such places are found by
    pooling neighbours that want to change places.
    """
    for layer, row in rows.items():
        pools: list[tuple[float, int]] = []
        for point, offset in zip(row, offsets[layer], strict=True):
            total, count = wanted[point] - offset, 1
            while pools and pools[-1][0] / pools[-1][1] > total / count:
                before = pools.pop()
                total, count = total + before[0], count + before[1]
            pools.append((total, count))
        settled = [total / count for total, count in pools for _ in range(count)]
        for point, offset, x in zip(row, offsets[layer], settled, strict=True):
            at[point] = x + offset


def _layers(graph: DrawnGraph) -> list[int]:
    """The layer of each vertex; what reads nothing lies just above what reads it."""
    layers = [0] * len(graph.vertices)
    roots = [True] * len(graph.vertices)
    first = [len(layers)] * len(graph.vertices)
    for source, target in sorted(graph.edges, key=lambda edge: edge[1]):
        layers[target] = max(layers[target], layers[source] + 1)
        roots[target] = False
    for source, target in graph.edges:
        first[source] = min(first[source], layers[target])
    return [
        max(first[index] - 1, 0) if roots[index] and first[index] < len(layers) else layer
        for index, layer in enumerate(layers)
    ]


def _bent(graph: DrawnGraph, layers: Sequence[int]) -> list[int]:
    """The edges that are laid out, the shortest first while there is room for their points."""

    def span(number: int) -> int:
        source, target = graph.edges[number]
        return layers[target] - layers[source]

    room = _BENDS * len(layers) + _LONGEST
    chosen: list[int] = []
    for number in sorted(range(len(graph.edges)), key=span):
        room -= span(number) - 1
        if room < 0 or span(number) > _LONGEST:
            break
        chosen.append(number)
    return sorted(chosen)


def _line(points: Sequence[Point]) -> str:
    """A smooth line through the points of an edge, from the lower to the upper side of a box."""
    (x, y), rest = points[0], points[1:]
    y += BOX[1]
    path = f"M{x} {y}"
    for index, (to_x, to_y) in enumerate(rest):
        if to_x != x:
            middle = (y + to_y) // 2
            path += f"C{x} {middle} {to_x} {middle} {to_x} {to_y}"
            y = to_y
        last = index == len(rest) - 1
        bottom = to_y if last else to_y + BOX[1]
        straight = not last and rest[index + 1][0] == to_x
        if bottom != y and not straight:
            path += f"V{bottom}"
            y = bottom
        x = to_x
    return path


def _line_beside(source: Point, target: Point, lane: int) -> str:
    """A line that leaves to the right, runs down and comes back."""
    (x, y), (to_x, to_y) = source, target
    return (
        f"M{x} {y}C{lane} {y} {lane} {y} {lane} {y + 24}"
        f"V{to_y - 24}C{lane} {to_y} {lane} {to_y} {to_x} {to_y}"
    )
