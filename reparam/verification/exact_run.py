"""A graph that runs in float64: what new operators, new code and new weights are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from reparam.analysis.facts import Facts
from reparam.capture.operators import converts
from reparam.modules.float64 import call_exact, in_float64, run_node
from reparam.modules.tree import fetch


class ExactRun:
    """Runs operators of a graph in float64, one after another.

    Args:
        facts: What is known of the graph.
        values: The values that it starts from.
        weights: What to take instead of some parameters, by their identity.

    Attributes:
        values: The value of each node that ran, and of each constant that was read.
    """

    def __init__(
        self,
        facts: Facts,
        values: Mapping[fx.Node, Any],
        weights: Mapping[int, Tensor] | None = None,
    ) -> None:
        self.facts = facts
        self.values = dict(values)
        self.weights = weights or {}

    def read(self, node: fx.Node) -> Any:
        """The value of a node that ran, or of a constant."""
        if node not in self.values:
            self.values[node] = self._constant(node)
        return self.values[node]

    def run(self, node: fx.Node) -> Any:
        """Run one node on the values of its operands."""
        if converts(node):  # to a type of the model's: here all is float64
            value = fx.map_arg(node.args[0], self.read)
        else:
            value = run_node(node, self.facts.root, self.read, self._call)
        self.values[node] = value
        return value

    def _constant(self, node: fx.Node) -> Any:
        if node.op == "get_attr" and self.weights:
            parameter = fetch(self.facts.root, str(node.target))
            if id(parameter) in self.weights:
                return self.weights[id(parameter)]
        return in_float64(self.facts.constant(node))

    def _call(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        weights = {
            name: self.weights[id(parameter)]
            for name, parameter in (module.named_parameters() if self.weights else ())
            if id(parameter) in self.weights
        }
        return call_exact(module, args, kwargs, weights)
