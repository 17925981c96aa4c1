"""What has to be done to the modules of a traced model: the result of editing its graph."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from torch import fx, nn

from reparam.capture import Call, Trace


@dataclass
class Rewrite:
    """What has to be done to the modules of the root besides new code.

    Args:
        trace: The trace, which stays as it is.
        graph: A copy of its graph, edited.
        caller: For each node of the copy the innermost call whose code it belongs to.
        copies: For each node of the trace its copy.
        origins: For each node of the copy that is a copy what it is a copy of.
        modules: New modules by the path where they belong.
        changes: The calls whose own code changed, by the value of the region for which it changed.
        replaced: For each node of the copy that is gone the node that stands for it.
        removed: Modules and tensors that some code does not use any more: path and code.
        frames: The calls that regions lie in, by their values.
        swapped: Those of these values for which a part of that call is another one: a module is
            replaced where it is registered, or the code of a part has the operator.
        names: Where each region's operator is registered.
        joined: Where the operator is registered that stands for a module, by the module's path.
        protected: For each call the parts that other methods of its module run by themselves.
        inlined: Calls whose code has to move into their caller's.
        idle: Nodes of the copy that no code has to compute.
        dead: Values of the trace that are computed no more, though another node stands where they
            stood.
        altered: Values of the trace that stand for others now, such as one that a scale has moved
            above: looked after where methods return some.
        by_size: New operators that may be right only for the rank or size of what was traced.
        stand_for: For each new operator the nodes of the trace between what it reads and its value.
        alike: Identities of the modules that are called several times and edited the same each
            time.
    """

    trace: Trace
    graph: fx.Graph
    caller: dict[fx.Node, Call]
    copies: dict[fx.Node, fx.Node] = field(default_factory=dict)
    origins: dict[fx.Node, fx.Node] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    changes: dict[fx.Node, set[Call]] = field(default_factory=dict)
    replaced: dict[fx.Node, fx.Node] = field(default_factory=dict)
    removed: list[tuple[str, Call]] = field(default_factory=list)
    frames: dict[fx.Node, Call] = field(default_factory=dict)
    swapped: set[fx.Node] = field(default_factory=set)
    names: dict[fx.Node, str] = field(default_factory=dict)
    joined: dict[str, str] = field(default_factory=dict)
    protected: dict[Call, set[str]] = field(default_factory=dict)
    inlined: set[Call] = field(default_factory=set)
    idle: set[fx.Node] = field(default_factory=set)
    dead: set[fx.Node] = field(default_factory=set)
    altered: set[fx.Node] = field(default_factory=set)
    by_size: set[fx.Node] = field(default_factory=set)
    stand_for: dict[fx.Node, frozenset[fx.Node]] = field(default_factory=dict)
    alike: set[int] = field(default_factory=set)

    def copy(self, node: fx.Node) -> fx.Node:
        """The copy of a node of the trace; the node itself where there is none."""
        return self.copies.get(node, node)

    def origin(self, node: fx.Node) -> fx.Node:
        """What a node is a copy of; the node itself if it is none."""
        return self.origins.get(node, node)

    def current(self, node: fx.Node) -> fx.Node:
        """The node of the copy that stands for a node of the trace, or of the copy, now."""
        node = self.copies.get(node, node)
        while node in self.replaced:
            node = self.replaced[node]
        return node


def unedited(trace: Trace) -> Rewrite:
    """No change of a trace, to ask what a change would be."""
    return Rewrite(trace, trace.graph, trace.caller)


def begun(trace: Trace) -> Rewrite:
    """No change of a trace yet, with a copy of its graph to edit."""
    graph = fx.Graph()
    graph.set_codegen(copy.copy(trace.graph._codegen))
    copies: dict[fx.Node, fx.Node] = {}
    for node in trace.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        copies[node].name = node.name  # programs have some that torch.fx would not give
    origins = {new: node for node, new in copies.items()}
    caller = {new: trace.caller[node] for node, new in copies.items()}
    return Rewrite(trace, graph, caller, copies, origins)
