"""The graph of a model's forward, as far as it can be traced, and which module each node is from.

Tracing runs the user's code on proxies. Whatever that code does to the model on the way is undone,
and a module that did something, or that cannot be traced, becomes a leaf and stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from threading import RLock
from typing import Any

import torch
from torch import fx, nn

from reparam.capture.contexts import noticing
from reparam.capture.leaf_functions import (
    LeafFunction,
    as_leaves,
    failing_function,
    found_in_modules,
)
from reparam.capture.proxies import answering_for_proxies
from reparam.capture.structures import can_be_built, nodes_in
from reparam.capture.trace import Trace
from reparam.capture.tracer import Tracer
from reparam.errors import MadeTensorError, ReparamError, UntraceableError
from reparam.modules.state import Watch
from reparam.rules import Rules

_TRACING = RLock()  # torch.fx patches torch while it traces


def trace(
    root: nn.Module, rules: Rules, *, path: str = "", given: Mapping[str, Any] | None = None
) -> Trace:
    """Trace a module's forward, with whatever cannot be traced as a leaf.

    Args:
        root: The module.
        rules: The rules of this call; a module type or a function with a rule is a leaf.
        path: Where the module is registered in the user's model.
        given: Parameters of the forward that the user gives.

    Raises:
        UntraceableError: If the module's own forward cannot be traced.
    """
    opaque: set[Any] = set()
    known = [leaf for function in rules.functions() for leaf in found_in_modules(function)]
    making: set[int] = set()
    given_up: set[int] = set()
    functions: list[LeafFunction] = []
    drew = False
    while True:
        watch = Watch(root)
        notices_random = drew or bool(opaque)
        tracer = Tracer(
            root, rules, opaque, given or {}, watch, making, notices_random=notices_random
        )
        problem: Exception | None = None
        graph: fx.Graph | None = None
        try:
            with (
                _TRACING,
                watch,
                torch.no_grad(),
                noticing(tracer.note_context, _refuse_hook),
                answering_for_proxies(tracer),
                as_leaves([*known, *functions], tracer),
            ):
                graph = tracer.trace(root)
        except Exception as error:  # whatever the user's forward raises on a proxy
            problem = error
        if problem is not None:
            culprit = tracer.failed
            fresh = id(culprit) in tracer.makers - making - given_up
            if fresh and isinstance(problem, MadeTensorError):
                making.add(id(culprit))
                continue
            function = failing_function(problem)
            if function is not None and function not in functions:
                functions.append(function)
                continue
            if id(culprit) in making:  # it asks its tensors for numbers
                making.remove(id(culprit))
                given_up.add(id(culprit))
                continue
            if culprit is None or culprit is root:
                raise UntraceableError(_summary(problem))
            opaque.add(id(culprit))
            if type(culprit) is not type(root):
                opaque.add(type(culprit))
            continue
        if not making.isdisjoint(tracer.refused):
            given_up |= making & tracer.refused
            making -= tracer.refused
            continue
        if tracer.refused:
            if id(root) in tracer.refused:
                raise UntraceableError("its forward catches that a proxy has no value")
            opaque.update(tracer.refused)
            continue
        if watch.drew:
            if not notices_random:
                drew = True
                continue
            innermost = tracer.random_modules[0] if tracer.random_modules else root
            if innermost is root:
                raise UntraceableError("its forward draws random numbers while it is traced")
            opaque.add(id(innermost))
            continue
        if tracer.writing_modules:
            if tracer.writing_modules[0] is root:
                raise UntraceableError("its forward writes to tensors of the model")
            opaque.add(id(tracer.writing_modules[0]))
            continue
        if graph is None:
            raise ReparamError("tracing gave no graph")
        if not can_be_built(tracer.calls[0].result):
            raise UntraceableError("it returns a container of a class of its own")
        _simplify_output(graph, tracer.calls[0].result)
        for node in graph.nodes:
            tracer.caller.setdefault(node, tracer.calls[0])
        identities = {id(module) for module in watch.changed}
        stateful = tracer.in_context | {
            call for call in tracer.calls if id(call.module) in identities
        }
        return Trace(root, path, graph, tracer.calls, tracer.caller, stateful)


def _simplify_output(graph: fx.Graph, result: Any) -> None:
    """Return the bare nodes: whoever writes the graph down builds the containers again."""
    output = next(iter(reversed(graph.nodes)))
    built = [node for node in output.all_input_nodes if node not in set(nodes_in(result))]
    output.args = (tuple(nodes_in(result)),)
    while built:
        node = built.pop()
        if not node.users:
            built.extend(node.all_input_nodes)
            built = [feed for feed in built if feed not in set(nodes_in(result))]
            if node.op == "call_function" and isinstance(node.target, type):
                graph.erase_node(node)


def _refuse_hook() -> None:
    raise UntraceableError("its forward registers a hook")


def _summary(error: Exception) -> str:
    text = str(error).strip().split("\n", 1)[0]
    return f"its forward cannot be traced ({type(error).__name__}: {text[:160]})"
