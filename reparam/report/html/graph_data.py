"""The graphs as the page's script reads them: lists and numbers, and each text once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from reparam.report.html.drawn_graphs import DrawnGraph
from reparam.report.html.page_contents import PartPicture


def graph_data(model: str, parts: Iterable[PartPicture]) -> dict[str, Any]:
    """What the script draws.

    Args:
        model: The class of the model.
        parts: The graphs.

    Returns:
        ``texts``; ``blocks``, a list of title, place and parent, the first of which holds all
        parts; ``before`` and ``after``, lists of operators: title, place, block, region, refusal
        (0 for none), shape, whether it is affine, and the positions of what it reads. Titles,
        places and shapes are positions in ``texts``.
    """
    numbers: dict[str, int] = {}

    def text(value: str) -> int:
        return numbers.setdefault(value.replace("->", "→"), len(numbers))

    blocks: list[list[int]] = [[text(model), text(""), -1]]
    sides: dict[str, list[list[Any]]] = {"before": [], "after": []}
    for part in parts:
        first = len(blocks)
        for block in part.blocks:
            parent = 0 if block.parent is None else first + block.parent
            blocks.append([text(block.title), text(block.place), parent])
        for side, graph in (("before", part.before), ("after", part.after)):
            earlier = len(sides[side])
            for vertex, reads in zip(graph.vertices, _reads(graph), strict=True):
                shape = "×".join(map(str, vertex.shape))
                sides[side].append(
                    [
                        text(vertex.title),
                        text(vertex.place),
                        first + vertex.block,
                        vertex.region or 0,
                        vertex.refusal or 0,
                        text(shape),
                        int(vertex.affine),
                        [earlier + source for source in reads],
                    ]
                )
    return {"texts": list(numbers), "blocks": blocks, **sides}


def _reads(graph: DrawnGraph) -> list[list[int]]:
    """For each operator the positions of those that it reads."""
    reads: list[list[int]] = [[] for _ in graph.vertices]
    for source, target in graph.edges:
        reads[target].append(source)
    return reads
