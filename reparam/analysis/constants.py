"""Which values of a graph depend on parameters and buffers only, and what they are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, fx, nn

from reparam.analysis.effects import Effects
from reparam.analysis.memory import Memory
from reparam.capture import CONSTANT_FACTORIES, Trait, returns_what_it_wrote, traits
from reparam.modules import fetch, in_float64, is_plain, memory, run_function


@dataclass(frozen=True, eq=False)
class Constants:
    """The constants of one graph.

    Args:
        root: The module that the graph's paths refer to.
        sources: For each constant the parameters and buffers that it depends on.
        written: What each node may write to.
    """

    root: nn.Module
    sources: Mapping[fx.Node, frozenset[str]]
    written: Mapping[fx.Node, tuple[fx.Node, ...]]
    _exact: dict[fx.Node, Any] = field(default_factory=dict)

    @cached_property
    def made(self) -> set[fx.Node]:
        """Constants that a forward makes of numbers, and what is computed of them."""
        made: set[fx.Node] = set()
        for node in self.sources:
            if node.target in CONSTANT_FACTORIES or not made.isdisjoint(node.all_input_nodes):
                made.add(node)
        return made

    def exact(self, node: fx.Node) -> Any:
        """The value of a constant: the tensor itself, or computed in float64."""
        return self._computed(node, self._exact, in_float64)

    def as_it_runs(self, node: fx.Node) -> Any:
        """The value of a constant in the type that it has when the model runs."""
        return self._computed(node, {}, lambda value: value)

    def _computed(
        self, node: fx.Node, values: dict[fx.Node, Any], convert: Callable[[Any], Any]
    ) -> Any:
        for constant in _in_order(node, values):
            if constant.op == "get_attr":
                values[constant] = fetch(self.root, str(constant.target))
                continue
            try:
                values[constant] = self._run(constant, values, convert)
            except RuntimeError:  # an operator for one type only
                values[constant] = self._run(constant, values, lambda value: value)
        return values[node]

    def _run(
        self, node: fx.Node, values: Mapping[fx.Node, Any], convert: Callable[[Any], Any]
    ) -> Any:
        """The value of a node whose operands are known."""
        written = self.written.get(node, ())

        def read(operand: fx.Node) -> Any:
            value = convert(values[operand])
            return value.clone() if operand in written else value

        return run_function(node, *fx.map_arg((node.args, node.kwargs), read))


def _in_order(node: fx.Node, there: Collection[fx.Node]) -> Iterator[fx.Node]:
    """A node and what it is computed of, operands first; what is yielded joins what is there."""
    pending = [node]
    while pending:
        missing = [arg for arg in pending[-1].all_input_nodes if arg not in there]
        if pending[-1] in there:
            pending.pop()
        elif missing:
            pending.extend(missing)
        else:
            yield pending.pop()


def find_constants(
    root: nn.Module,
    effects: Mapping[fx.Node, Effects],
    shared: Memory,
) -> Constants:
    """Find the values that are the same in every call of the model."""
    sources: dict[fx.Node, frozenset[str]] = {}
    for node, effect in effects.items():
        operands = node.all_input_nodes
        if node.op == "get_attr":
            value = fetch(root, str(node.target))
            if not isinstance(value, Tensor) or is_plain(value):
                sources[node] = frozenset((str(node.target),))
        elif (
            node.op in ("call_function", "call_method")
            and (operands or node.target in CONSTANT_FACTORIES)
            and all(operand in sources for operand in operands)
            and (effect.pure or _returns_what_it_wrote(node, effect))
        ):
            sources[node] = frozenset().union(*(sources[operand] for operand in operands))
    return Constants(root, _steady(sources, root, shared), shared.written)


def _returns_what_it_wrote(node: fx.Node, effects: Effects) -> bool:
    """Whether a node only writes to its first operand, and returns it."""
    if effects.random or effects.writes != node.args[:1]:
        return False
    surely = returns_what_it_wrote(node.op, node.target, node.kwargs)
    return surely or Trait.RETURNS_WHAT_IT_WROTE in traits(node)


def _steady(
    sources: dict[fx.Node, frozenset[str]],
    root: nn.Module,
    shared: Memory,
) -> dict[fx.Node, frozenset[str]]:
    """Constants without those that somebody writes to: they are none, before the write neither.

    The next call of the model finds another value. Not so where a forward makes a tensor and fills
    it: each write makes another constant, if what it writes to has no other name any more.
    """
    paths = frozenset[str]().union(*sources.values())
    tensors = {path: fetch(root, path) for path in paths}
    written = {
        path
        for path, value in tensors.items()
        if isinstance(value, Tensor) and memory(value) in shared.unsteady
    }
    while True:
        changing = {
            top
            for top, writers in shared.writers.items()
            if not sources.keys() >= set(writers)
            or any(shared.overwrites(writer) for writer in writers)
        }
        steady = {
            node: paths
            for node, paths in sources.items()
            if not written & paths
            and shared.storage[node] not in changing
            and sources.keys() >= set(node.all_input_nodes)
        }
        if len(steady) == len(sources):
            return steady
        sources = steady
