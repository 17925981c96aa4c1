"""The blocks that a graph is drawn in, which open and close: the calls of modules that made it.

The operators of a call follow each other in the graph, so that a block drawn as one box still has
nothing below it that it reads. A call of very few operators is no block; and where many operators
or blocks are in one, they become runs: what is drawn of a block is bounded, however many there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from math import ceil

from torch import fx

from reparam.analysis import Part
from reparam.capture import Call
from reparam.modules import join
from reparam.report.rows import operator_kind, place

FEWEST = 4
"""So many operators make a block."""

MOST = 48
"""So many operators and blocks are in a block, inputs and outputs apart."""

_KINDS = 1  # are named of a run

_ALIKE = 12  # runs hold a multiple of it, since what repeats does so after 2, 3, 4 or 6 operators


@dataclass(frozen=True)
class Block:
    """A call of a module, or a run of what follows each other in one.

    Args:
        title: What it is.
        place: Where it is.
        parent: The position of the block that it is in; None for a whole graph.
    """

    title: str
    place: str
    parent: int | None


@dataclass(frozen=True)
class Blocks:
    """The blocks of a graph.

    Args:
        blocks: Each after the one that it is in; the first is the whole graph.
        holder: For each node, in order, the position of the innermost block that holds it.
    """

    blocks: tuple[Block, ...]
    holder: dict[fx.Node, int]


@dataclass(eq=False)
class _Draft:
    """A block that is still being put together; of a run its kinds and the places of its ends."""

    title: str
    place: str
    items: list[fx.Node | _Draft] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    run: tuple[str, str] | None = None

    @property
    def ends(self) -> tuple[str, str]:
        """Where it begins and ends."""
        return self.run or (self.place, self.place)


def find_blocks(part: Part, nodes: Sequence[fx.Node]) -> Blocks:
    """The blocks of a graph.

    Args:
        part: The part of the model.
        nodes: What is drawn of it, in the order of the graph.

    Returns:
        The blocks.
    """
    path = part.trace.path
    root = _Draft(type(part.trace.root).__name__, path or "the model")
    drafts = [root]
    around: list[tuple[_Draft, int]] = [(root, len(nodes))]
    calls = sorted(_calls(part, nodes), key=lambda span: (span[0], -span[1]))
    position = 0
    for first, last, call in [*calls, (len(nodes), len(nodes), None)]:
        while position < first:
            while around[-1][1] <= position:
                around.pop()
            stop = min(first, around[-1][1])
            around[-1][0].items.extend(nodes[position:stop])
            position = stop
        while around[-1][1] <= first and len(around) > 1:
            around.pop()
        if call is not None:
            draft = _Draft(type(call.module).__name__, join(path, call.path))
            around[-1][0].items.append(draft)
            around.append((draft, last))
            drafts.append(draft)
    for draft in drafts:
        _divide(part, draft)
    return _numbered(root, nodes)


def _calls(part: Part, nodes: Sequence[fx.Node]) -> Iterator[tuple[int, int, Call]]:
    """The calls that become blocks, each with the first of its nodes and the end of them."""
    spans: dict[tuple[int, int], Call] = {}
    open_calls: list[tuple[Call, int]] = []
    chains = [_chain(part, node) for node in nodes]
    for position, chain in enumerate([*chains, []]):  # the last one closes all
        kept = 0
        for held, call in zip_longest(open_calls, chain):
            if held is None or held[0] is not call:
                break
            kept += 1
        while len(open_calls) > kept:  # the innermost first: it names what is the same as it
            call, first = open_calls.pop()
            if position - first >= FEWEST:
                spans.setdefault((first, position), call)
        open_calls.extend((call, position) for call in chain[kept:])
    shown = sum(not _is_end(node) for node in nodes)
    for (first, last), call in spans.items():
        if last - first < shown:
            yield first, last, call


def _chain(part: Part, node: fx.Node) -> list[Call]:
    """The calls that a node is in, the outermost first, but for that of the root."""
    return [] if _is_end(node) else [*part.trace.caller[node].ancestry()][-2::-1]


def _is_end(node: fx.Node) -> bool:
    return node.op in ("placeholder", "output")


def _divide(part: Part, draft: _Draft) -> None:
    """Put what is in a block into runs, and these into runs, until there are few."""
    inner = [item for item in draft.items if isinstance(item, _Draft) or not _is_end(item)]
    if len(inner) <= MOST:
        return
    first = [item for item in draft.items if isinstance(item, fx.Node) and item.op == "placeholder"]
    last = [item for item in draft.items if isinstance(item, fx.Node) and item.op == "output"]
    while len(inner) > MOST:
        each = len(inner) / ceil(len(inner) / MOST)
        each = _ALIKE * ceil(each / _ALIKE)
        cuts = range(0, len(inner), each)
        inner = [_run(part, inner[cut : cut + each]) for cut in cuts]
    draft.items = [*first, *inner, *last]


def _run(part: Part, items: list[fx.Node | _Draft]) -> _Draft:
    """A block of what follows each other, named after the first and the last of it."""
    kinds: Counter[str] = Counter()
    for item in items:
        if isinstance(item, _Draft) and item.kinds:
            kinds.update(item.kinds)
        else:
            kinds[item.title if isinstance(item, _Draft) else operator_kind(part.trace, item)] += 1
    named = [f"{count} {kind}" for kind, count in kinds.most_common(_KINDS)]
    ends = [
        (item.ends if isinstance(item, _Draft) else (place(part.trace, item),) * 2)
        for item in (items[0], items[-1])
    ]
    first, last = ends[0][0], ends[1][1]
    shared = first.rpartition(".")[0] + "."
    title = f"{first} – {last.removeprefix(shared)}"
    content = " + ".join([*named, *["…"] * (len(kinds) > _KINDS)])
    return _Draft(title, content, items, kinds, (first, last))


def _numbered(root: _Draft, nodes: Sequence[fx.Node]) -> Blocks:
    """The blocks in order, each after the one that it is in."""
    blocks: list[Block] = []
    holder: dict[fx.Node, int] = {}
    pending: list[tuple[_Draft, int | None]] = [(root, None)]
    while pending:
        draft, parent = pending.pop()
        number = len(blocks)
        blocks.append(Block(draft.title, draft.place, parent))
        for item in reversed(draft.items):
            if isinstance(item, _Draft):
                pending.append((item, number))
            else:
                holder[item] = number
    return Blocks(tuple(blocks), {node: holder[node] for node in nodes})
