"""Contexts that code enters around some of its operators, such as ``torch.no_grad``.

They stand in the graph as two operators, at which the code around a block begins and ends; the code
of a fused forward holds a block there again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx

_KINDS: dict[type, tuple[str, ...]] = {
    torch.no_grad: (),
    torch.enable_grad: (),
    torch.inference_mode: ("mode",),
}
"""Contexts that change no value, and the attributes with which another one is made."""


def context(kind: str, *options: Any) -> Any:
    """A context of torch's, by its name."""
    return getattr(torch, kind)(*options)


def end_of_context() -> None:
    """Stands where the block of a context ends."""


class Contexts:
    """The contexts that are entered while a forward is traced.

    Args:
        tracer: Traces it.
    """

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer
        self._entered: dict[int, Any] = {}

    def entered(self, manager: Any) -> None:
        """Note that code enters a context: in the graph if it changes no value."""
        call = self._tracer.innermost()
        if call is None:
            return
        if type(manager) not in _KINDS:
            self._tracer.doubts.note_context()
            return
        kind = type(manager)
        options = [getattr(manager, name) for name in _KINDS[kind]]
        self._tracer.create_node("call_function", context, (kind.__name__, *options), {})
        self._entered[id(manager)] = manager

    def left(self, manager: Any) -> None:
        """Note that code leaves a context."""
        if self._entered.pop(id(manager), None) is not None and self._tracer.innermost():
            self._tracer.create_node("call_function", end_of_context, (), {})


def contexts_around(nodes: Iterable[fx.Node]) -> Mapping[fx.Node, tuple[Any, ...]]:
    """The contexts in which nodes of a graph run, from the outermost one; others are left out."""
    around: dict[fx.Node, tuple[Any, ...]] = {}
    stack: list[Any] = []
    for node in nodes:
        if node.target is context:
            stack.append(node.args)
        elif node.target is end_of_context and stack:
            stack.pop()
        elif stack:
            around[node] = tuple(stack)
    return around


def with_blocks(code: str, graph: fx.Graph) -> str:
    """The code of a graph with blocks of its contexts."""
    begins = {node.name for node in graph.nodes if node.target is context}
    ends = {node.name for node in graph.nodes if node.target is end_of_context}
    if not begins:
        return code
    lines: list[str] = []
    depth = 0
    for line in code.splitlines():
        name = re.match(r"\s*(\w+) = ", line)
        if name and name[1] in begins:
            made = line.split(" = ", 1)[1].split(";", 1)[0]
            lines.append(f"{'    ' * (depth + 1)}with {made}:")
            depth += 1
            lines.append(f"{'    ' * (depth + 1)}pass")
        elif name and name[1] in ends:
            depth -= 1
        else:
            lines.append("    " * depth + line)
    return "\n".join(lines) + "\n"
