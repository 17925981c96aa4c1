"""Values in a graph that other code than the graph's may see: they keep the scale 1.

A forward that takes options may use its values otherwise when they differ, one that keeps state may
have stored them, and a public method of the model may run a part of it and return what that gives.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

from reparam.capture import Call, Trace, knows_only_tensors, nodes_in
from reparam.equalization.scale_flow import Scaling
from reparam.errors import Refusal
from reparam.modules import fetch


def fix_seen_values(scaling: Scaling, model: nn.Module) -> None:
    """Let all values that others may see keep the scale 1.

    Args:
        scaling: The channels of a part.
        model: The whole model. What its parts return is nobody's but its own, be it by forward or
            by another method.
    """
    trace = scaling.part.trace
    by_methods = {
        key: min(name for owner, name in methods if owner == id(model))
        for key, methods in trace.by_methods.items()
        if any(owner == id(model) for owner, _ in methods)
    }
    varying: set[Call] = set()
    for call in trace.calls:
        method = by_methods.get(id(call.module))
        if method is not None:
            scaling.fix(_given_and_returned(call), _method_reason(method))
        above = call.parent is None or call.parent in varying or method is not None
        if above and not knows_only_tensors(call):
            varying.add(call)
    for node in trace.graph.nodes:
        if node.op == "call_module":
            method = by_methods.get(id(fetch(trace.root, str(node.target))))
            if method is not None:
                scaling.fix([node, *node.all_input_nodes], _method_reason(method))
    where = {call: call.path or "the model" for call in trace.calls}
    for call in trace.stateful:
        reason = (
            "changes its own attributes when it runs, or enters a context such as torch.no_grad"
        )
        scaling.fix(_values_of(call, trace), Refusal(f"{where[call]} {reason}"))
    for call in varying:
        reason = f"{where[call]} takes options, and may use its values otherwise"
        scaling.fix(_values_of(call, trace), Refusal(reason))


def _values_of(call: Call, trace: Trace) -> Iterator[fx.Node]:
    """What a forward names: what it is given, what it computes, and what its parts return."""
    yield from _given_and_returned(call)
    for node in trace.graph.nodes:
        if trace.caller[node] is call:
            yield node
    for inner in trace.calls:
        if inner.parent is call:
            yield from _given_and_returned(inner)


def _given_and_returned(call: Call) -> list[fx.Node]:
    return list(nodes_in((call.args, call.kwargs, call.result)))


def _method_reason(method: str) -> Refusal:
    return Refusal(f"the method {method} may return it")
