"""Laws of a rewritten graph, as a table that is checked on request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import fx

from reparam.capture import GRAPH, Invariant, Trace
from reparam.modules import fetch
from reparam.rewriting.changes import Rewrite


def _as_trace(rewritten: Rewrite) -> Trace:
    return replace(rewritten.trace, graph=rewritten.graph, caller=rewritten.caller)


def _leads_nowhere(rewritten: Rewrite) -> Iterator[fx.Node]:
    for node in rewritten.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            path = str(node.target)
            new = path in rewritten.modules or path.rpartition(".")[0] in rewritten.modules
            try:
                new or fetch(rewritten.trace.root, path)
            except AttributeError:
                yield node


def _still_there(rewritten: Rewrite) -> Iterator[fx.Node]:
    nodes = set(rewritten.graph.nodes)
    return (node for node in rewritten.replaced if node in nodes)


def _never_called(rewritten: Rewrite) -> Iterator[fx.Node]:
    called = {node.target for node in rewritten.graph.nodes if node.op == "call_module"}
    return (value for value, path in rewritten.names.items() if path not in called)


REWRITTEN = (
    *(
        Invariant(law.law, lambda rewritten, law=law: law.breaking(_as_trace(rewritten)))
        for law in GRAPH
    ),
    Invariant("a path leads to a part of the root or to a new operator", _leads_nowhere),
    Invariant("what another node stands for is gone", _still_there),
    Invariant("the operator of a region is called", _never_called),
)
"""What is true of every graph that was rewritten."""
