"""The graph of a part before and after, as what is drawn: operators and what they read.

Parameters, sizes, assertions and what nobody reads are not drawn. The graph after fusing is told
from the plan, without changing anything: each region is one operator that reads its base, what else
it takes in stands for what it reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod

from torch import fx

from reparam.algebra import AffineConv, AffineStack, AffineSum, explicit_padding
from reparam.analysis import Part
from reparam.planning import Region
from reparam.report.rows import operator_kind, place


@dataclass(frozen=True)
class Vertex:
    """One operator.

    Args:
        title: What it is.
        place: Where it is.
        region: Number of the region that it belongs to, or is what becomes of.
        refusal: Number of the refusal that says why it stays.
        block: Position of the block that it is in.
        shape: The shape of its value, if that is known.
        affine: Whether it is an affine operator.
    """

    title: str
    place: str
    region: int | None = None
    refusal: int | None = None
    block: int = 0
    shape: tuple[int, ...] = ()
    affine: bool = False


@dataclass(frozen=True)
class DrawnGraph:
    """Operators and what they read.

    Args:
        vertices: The operators, each after what it reads.
        edges: For each value that is read the positions of its operator and of its reader.
    """

    vertices: tuple[Vertex, ...]
    edges: tuple[tuple[int, int], ...]

    @property
    def operators(self) -> int:
        """How many vertices compute something."""
        return sum(vertex.title not in ("input", "output") for vertex in self.vertices)


def graph_before(
    part: Part,
    holder: Mapping[fx.Node, int],
    numbers: Mapping[Region, int],
    refusals: Mapping[fx.Node, int],
) -> DrawnGraph:
    """What is drawn of a part as it is.

    Args:
        part: The part.
        holder: For each node that is drawn the position of the block that it is in.
        numbers: The numbers of its regions.
        refusals: The numbers of its refusals, by node.

    Returns:
        The graph.
    """
    owner: dict[fx.Node, int] = {}
    for region, number in numbers.items():
        for node in region.dying:
            owner.setdefault(node, number)
    nodes = [*holder]
    places = {node: index for index, node in enumerate(nodes)}
    vertices = [
        replace(_vertex(part, node, owner.get(node), refusals.get(node)), block=holder[node])
        for node in nodes
    ]
    edges = [
        (places[operand], places[node])
        for node in nodes
        for operand in node.all_input_nodes
        if operand in places
    ]
    return DrawnGraph(tuple(vertices), tuple(edges))


def graph_after(
    part: Part,
    holder: Mapping[fx.Node, int],
    numbers: Mapping[Region, int],
    refusals: Mapping[fx.Node, int],
    results: Mapping[int, str],
) -> DrawnGraph:
    """What is drawn of a part once its regions are one operator each.

    Args:
        part: The part.
        holder: For each node that is drawn the position of the block that it is in.
        numbers: The numbers of its regions.
        refusals: The numbers of its refusals, by node.
        results: By number what each region becomes.

    Returns:
        The graph.
    """
    stands_for, made = _replaced(numbers)
    dying = {node for region in numbers for node in region.dying}
    multiplied = {region.multiple.value for region in numbers if region.multiple is not None}

    def current(node: fx.Node) -> fx.Node:
        while node in stands_for and node not in made:
            node = stands_for[node]
        return node

    def reads(node: fx.Node) -> list[fx.Node]:
        operands = [made[node][1]] if node in made else node.all_input_nodes
        return list(dict.fromkeys(current(operand) for operand in operands))

    kept: set[fx.Node] = set()
    pending = [node for node in holder if node not in dying]
    while pending:
        node = pending.pop()
        if node in holder and node not in kept:
            kept.add(node)
            pending.extend(reads(node))
    nodes = [node for node in holder if node in kept]  # what stands for another was there before
    places = {node: index for index, node in enumerate(nodes)}
    vertices = []
    for node in nodes:
        if node in made:
            region = made[node][0]
            number = numbers[region]
            steps = ["type_as"] * region.converts + ["pad"] * len(explicit_padding(region.form))
            title = " + ".join([*steps, results[number]])
            vertex = Vertex(title, place(part.trace, node), number, shape=_shape(part, node))
        else:
            vertex = _vertex(part, node, None, refusals.get(node))
            title = f"{vertex.title} + mul" if node in multiplied else vertex.title
        vertices.append(replace(vertex, title=title, block=holder[node]))
    edges = [
        (places[operand], places[node])
        for node in nodes
        for operand in reads(node)
        if operand in places
    ]
    return DrawnGraph(tuple(vertices), tuple(edges))


def _replaced(
    regions: Iterable[Region],
) -> tuple[dict[fx.Node, fx.Node], dict[fx.Node, tuple[Region, fx.Node]]]:
    """What stands for what afterwards, and where the new operators are with what they read."""
    stands_for: dict[fx.Node, fx.Node] = {}
    made: dict[fx.Node, tuple[Region, fx.Node]] = {}
    for region in regions:
        if region.collapses:
            made[region.main.value] = region, region.main.base
            for link in region.path:
                if link.form is not None and link is not region.main:
                    stands_for[link.value] = link.base
        else:
            made[region.value] = region, region.base
        for scale in region.scales:
            stands_for.setdefault(scale.value, scale.base)
        for absorbed in region.absorbed:
            stands_for[absorbed.total] = absorbed.kept
    return stands_for, made


def drawn_nodes(part: Part) -> list[fx.Node]:
    """What is drawn of a part, in the order of its graph."""
    facts = part.facts
    hidden = facts.sources.keys() | facts.numbers | facts.asserted | facts.idle
    return [node for node in part.trace.graph.nodes if node.op != "get_attr" and node not in hidden]


def _vertex(part: Part, node: fx.Node, region: int | None, refusal: int | None) -> Vertex:
    shape = _shape(part, node)
    if node.op in ("placeholder", "output"):
        name = "input" if node.op == "placeholder" else "output"
        where = node.name if node.op == "placeholder" else part.trace.path
        return Vertex(name, where, shape=shape)
    title = operator_kind(part.trace, node)
    step = part.steps.get(node)
    if isinstance(step, AffineConv) and step.axes and prod(axis.kernel for axis in step.axes) > 1:
        title += " " + "×".join(str(axis.kernel) for axis in step.axes)
    affine = isinstance(step, AffineConv | AffineSum | AffineStack)
    where = place(part.trace, node)
    return Vertex(title, where, region, refusal, shape=shape, affine=affine)


def _shape(part: Part, node: fx.Node) -> tuple[int, ...]:
    return tuple(part.facts.shapes.get(node, ()))
