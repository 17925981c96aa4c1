"""A graph that runs in float64: what new operators, new code and new weights are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from reparam.analysis import Facts
from reparam.capture import converts, nodes_in
from reparam.modules import call_exact, fetch, in_float64, run_function


@dataclass(eq=False)
class ExactRun:
    """Runs operators of a graph in float64, one after another.

    Args:
        facts: What is known of the graph.
        values: The values that it starts from; those of what ran, and of constants, join them.
        weights: What modules use instead of their parameters, by the identity of these.
    """

    facts: Facts
    values: dict[fx.Node, Any]
    weights: Mapping[int, Tensor] = field(default_factory=dict)

    def knows(self, structure: Any) -> bool:
        """Whether all nodes in a structure have a value, or are constants."""
        sources = self.facts.sources
        return all(node in self.values or node in sources for node in nodes_in(structure))

    def read(self, node: fx.Node) -> Any:
        """The value of a node that ran, or of a constant."""
        if node not in self.values:
            self.values[node] = in_float64(self.facts.constants.exact(node))
        return self.values[node]

    def run(self, node: fx.Node) -> None:
        """Run one node on the values of its operands."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.read)
        if converts(node):  # to a type of the model's, where all here is float64
            self.values[node] = args[0]
        elif node.op == "call_module":
            module = fetch(self.facts.root, str(node.target))
            self.values[node] = call_exact(module, args, kwargs, self.weights)
        else:
            self.values[node] = run_function(node, args, kwargs)
