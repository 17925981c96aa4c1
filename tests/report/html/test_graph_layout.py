"""Operators do not overlap, edges are drawn, and a thousand operators take a second."""

from __future__ import annotations

import random
import time
from itertools import combinations

import pytest

from reparam.report.html.drawn_graphs import DrawnGraph, Vertex
from reparam.report.html.graph_layout import BOX, Layout, lay_out


def graph(count: int, edges: list[tuple[int, int]]) -> DrawnGraph:
    return DrawnGraph(tuple(Vertex("add", str(i)) for i in range(count)), tuple(edges))


def random_graph(count: int, seed: int) -> DrawnGraph:
    """A chain with branches, joins and some edges that jump far."""
    source = random.Random(seed)
    edges = set()
    for target in range(1, count):
        for _ in range(source.choice([1, 1, 1, 2, 3])):
            reach = source.choice([1, 1, 2, 3, 5, count])
            edges.add((source.randrange(max(0, target - reach), target), target))
    return graph(count, sorted(edges))


def assert_apart(layout: Layout) -> None:
    for (x, y), (other_x, other_y) in combinations(layout.corners, 2):
        assert abs(x - other_x) >= BOX[0] or abs(y - other_y) >= BOX[1]
    for x, y in layout.corners:
        assert 0 <= x <= layout.width - BOX[0]
        assert 0 <= y <= layout.height - BOX[1]


@pytest.mark.parametrize("seed", range(12))
def test_operators_do_not_overlap(seed: int) -> None:
    drawn = random_graph(60, seed)
    layout = lay_out(drawn)
    assert_apart(layout)
    assert len(layout.lines) == len(drawn.edges)
    assert all(line.startswith("M") for line in layout.lines)


def test_a_chain_is_straight() -> None:
    layout = lay_out(graph(5, [(0, 1), (1, 2), (2, 3), (3, 4)]))
    assert len({x for x, _ in layout.corners}) == 1
    assert all("C" not in line for line in layout.lines)


def test_nothing_and_one_operator_have_a_layout() -> None:
    assert lay_out(graph(0, [])).corners == ()
    assert len(lay_out(graph(1, [])).corners) == 1
    assert_apart(lay_out(graph(4, [])))


def test_what_reads_nothing_lies_next_to_what_reads_it() -> None:
    layout = lay_out(graph(5, [(0, 1), (1, 2), (2, 4), (3, 4)]))
    assert layout.corners[3][1] == layout.corners[2][1]


@pytest.mark.parametrize("jump", [1, 7, 500])
def test_a_thousand_operators_take_seconds_at_most(jump: int) -> None:
    edges = [(i, i + 1) for i in range(999)]
    edges += [(i, i + jump) for i in range(0, 1000 - jump, 2)] if jump > 1 else []
    began = time.perf_counter()
    lay_out(graph(1000, edges))
    assert time.perf_counter() - began < 20  # a second on an idle machine
