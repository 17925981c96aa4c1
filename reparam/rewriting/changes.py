"""What has to be done to the modules of a traced model: the result of editing its graph."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx, nn

from reparam.capture.trace import Call, Trace


@dataclass
class Rewrite:
    """What has to be done to the modules of the root besides new code.

    Args:
        trace: The trace, its graph edited.
        modules: New modules by the path where they belong.
        edited: The calls whose own code changed.
        changes: The same by the value of the region for which it changed.
        replaced: For each node that is gone the node that stands for it.
        removed: Modules and tensors that some code does not use any more: path and code.
        swapped: Modules that are replaced where they are registered, and the call that all of the
            region lies in.
        names: Where each region's operator is registered.
        joined: Where the operator is registered that stands for a module, by the module's path.
        protected: For each call the parts that other methods of its module run by themselves.
        inlined: Calls whose code has to move into their caller's.
        idle: Nodes that no code has to compute.
        dead: Values that are computed no more, though another node stands where they stood.
        alike: Identities of the modules that are called several times and edited the same each
            time.
    """

    trace: Trace
    modules: dict[str, nn.Module] = field(default_factory=dict)
    edited: set[Call] = field(default_factory=set)
    changes: dict[fx.Node, set[Call]] = field(default_factory=dict)
    replaced: dict[fx.Node, fx.Node] = field(default_factory=dict)
    removed: list[tuple[str, Call]] = field(default_factory=list)
    swapped: list[tuple[str, Call]] = field(default_factory=list)
    names: dict[fx.Node, str] = field(default_factory=dict)
    joined: dict[str, str] = field(default_factory=dict)
    protected: dict[Call, set[str]] = field(default_factory=dict)
    inlined: set[Call] = field(default_factory=set)
    idle: set[fx.Node] = field(default_factory=set)
    dead: set[fx.Node] = field(default_factory=set)
    alike: set[int] = field(default_factory=set)

    def current(self, node: fx.Node) -> fx.Node:
        """The node that stands for a node of the trace now."""
        while node in self.replaced:
            node = self.replaced[node]
        return node
