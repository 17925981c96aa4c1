"""Laws that a graph keeps from capture to rewriting, as a table that is checked on request.

Where the environment variable ``REPARAM_INVARIANTS`` is set, each stage asks its table which nodes
break a law, and names the first one. The tests set it; somebody who reports a problem may, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from reparam.capture.structures import nodes_in
from reparam.capture.trace import Trace
from reparam.errors import InvariantError
from reparam.modules import fetch

SWITCH = "REPARAM_INVARIANTS"


@dataclass(frozen=True)
class Invariant:
    """A law, and what to ask for the nodes that break it.

    Args:
        law: The law, as a sentence.
        breaking: From what a stage made to the nodes, or calls, that break the law.
    """

    law: str
    breaking: Callable[..., Iterable[object]]


def hold(stage: str, invariants: Sequence[Invariant], *made: Any) -> None:
    """Check what a stage made, if the switch is on.

    Args:
        stage: What was done, for the message.
        invariants: The laws.
        *made: What was made, as the laws take it.

    Raises:
        InvariantError: If a law does not hold; a mistake of this library.
    """
    if os.environ.get(SWITCH, "") in ("", "0"):
        return
    for invariant in invariants:
        for culprit in invariant.breaking(*made):
            raise InvariantError(
                f"after {stage}, {_named(culprit)} breaks a law of graphs: {invariant.law}. "
                "Please report it, it is a mistake of reparam"
            )


def _named(culprit: object) -> str:
    """A node with what it does, or a call by its path."""
    if isinstance(culprit, fx.Node):
        return f"`{culprit.format_node() or culprit.name}`"
    return f"the call of {getattr(culprit, 'path', None) or 'the root'}"


def _out_of_order(trace: Trace) -> Iterator[fx.Node]:
    before: set[fx.Node] = set()
    for node in trace.graph.nodes:
        if not before.issuperset(node.all_input_nodes):
            yield node
        before.add(node)


def _read_from_outside(trace: Trace) -> Iterator[fx.Node]:
    nodes = set(trace.graph.nodes)
    return (node for node in nodes if not nodes.issuperset(node.users))


def _ends_inside(trace: Trace) -> Iterator[fx.Node]:
    *inner, last = trace.graph.nodes
    if last.op != "output":
        yield last
    for before, node in zip([None, *inner], inner, strict=False):
        # A program reads its state where it was handed in, before the inputs of the user.
        early = before is None or before.op in ("placeholder", "get_attr")
        late = node.op == "placeholder" and not early
        if late or node.op == "output":
            yield node


def _leads_nowhere(trace: Trace) -> Iterator[fx.Node]:
    for node in trace.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            try:
                fetch(trace.root, str(node.target))
            except AttributeError:
                yield node


def _made_by_nobody(trace: Trace) -> Iterator[fx.Node]:
    calls = set(trace.calls)
    return (node for node in trace.graph.nodes if trace.caller.get(node) not in calls)


def _not_nested(trace: Trace) -> Iterator[object]:
    begun: set[object] = set()
    for call in trace.calls:
        if call.parent not in begun and (begun or call.parent is not None):
            yield call
        begun.add(call)


def _elsewhere(trace: Trace) -> Iterator[object]:
    for call in trace.calls:
        module = fetch(trace.root, call.path) if call.path else trace.root
        if module is not call.module:
            yield call


def _of_another_graph(trace: Trace) -> Iterator[fx.Node]:
    nodes = set(trace.graph.nodes)
    for call in trace.calls:
        yield from set(nodes_in((call.args, call.kwargs, call.arguments, call.result))) - nodes


GRAPH = (
    Invariant("a node reads only nodes that stand before it", _out_of_order),
    Invariant("who reads a node is in its graph", _read_from_outside),
    Invariant("placeholders come first, and one output comes last", _ends_inside),
    Invariant("a node was made by one of the calls of its trace", _made_by_nobody),
    Invariant(
        "a call was made by one that began before it, and only the first by none", _not_nested
    ),
)
"""What is true of every graph, before and after it is rewritten."""

CAPTURED = (
    *GRAPH,
    Invariant("a path leads to a module or a tensor of the root", _leads_nowhere),
    Invariant("the path of a call leads to its module", _elsewhere),
    Invariant("what a call was given and returned are nodes of its graph", _of_another_graph),
)
"""What is true of a graph that was captured."""
