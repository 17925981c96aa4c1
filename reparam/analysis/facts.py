"""What is known of the values of one graph: constants, ranks, aliases and writes.

Everything unknown is taken at its worst: an unknown operator may return a view of its arguments
and may write to them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.analysis.effects import Effects, draws_by_layout, effects_of, may_copy
from reparam.analysis.ranks import find_axes
from reparam.capture.operators import (
    CONSTANT_FACTORIES,
    Trait,
    reads_metadata,
    returns_what_it_wrote,
    traits,
)
from reparam.errors import Refusal
from reparam.modules.float64 import in_float64, run_function
from reparam.modules.tree import fetch, is_plain, memory
from reparam.rules import Rules


@dataclass(eq=False)
class Facts:
    """What is known of one graph.

    Args:
        order: Position of each node.
        constants: Value of each node that depends on parameters and buffers only, as used so far.
        sources: For each constant node the parameters and buffers it depends on.
        numbers: Nodes whose value is no tensor but a size or a flag.
        ranks: Number of axes of a value, where known.
        ones: Number of last axes that have size 1, where known.
        shapes: Shapes of values, where example inputs were given.
        dtypes: Types of values, where example inputs were given.
        asserted: Nodes that only feed assertions on shapes and types.
        unread: Nodes without effect whose value nobody reads.
        passed: Those of these that modules are given or return, and so are computed.
        unsteady: Memory of parameters and buffers that a forward may write to.
        by_layout: Nodes that do something else if their operand lies otherwise in memory.
        inner: Whether other code of the model, which is not known, reads what the graph returns.
    """

    root: nn.Module
    order: dict[fx.Node, int]
    sources: dict[fx.Node, frozenset[str]]
    numbers: set[fx.Node]
    ranks: dict[fx.Node, int]
    shapes: dict[fx.Node, torch.Size]
    dtypes: dict[fx.Node, torch.dtype]
    ones: dict[fx.Node, int] = field(default_factory=dict)
    asserted: set[fx.Node] = field(default_factory=set)
    unread: set[fx.Node] = field(default_factory=set)
    passed: set[fx.Node] = field(default_factory=set)
    storage: dict[fx.Node, fx.Node] = field(default_factory=dict)
    members: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    writers: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    written: dict[fx.Node, tuple[fx.Node, ...]] = field(default_factory=dict)
    constants: dict[fx.Node, Any] = field(default_factory=dict)
    unsteady: set[int] = field(default_factory=set)
    by_layout: set[fx.Node] = field(default_factory=set)
    inner: bool = False

    @cached_property
    def idle(self) -> set[fx.Node]:
        """Nodes that no code has to compute."""
        return self.unread - self.passed

    def is_written(self, module: nn.Module) -> bool:
        """Whether a forward may write to the parameters or buffers of a module."""
        return bool(self.unsteady) and any(
            memory(tensor) in self.unsteady for tensor in (*module.parameters(), *module.buffers())
        )

    def operands(self, node: fx.Node) -> list[fx.Node]:
        """The tensors that a node reads and that depend on the model's input."""
        return [
            argument
            for argument in node.all_input_nodes
            if argument not in self.sources and argument not in self.numbers
        ]

    def alias_class(self, node: fx.Node) -> list[fx.Node]:
        """All values that may share memory with this one."""
        return self.members.get(self.storage.get(node, node), [node])

    def write_between(
        self, node: fx.Node, first: int, last: int, ignoring: Collection[fx.Node] = ()
    ) -> bool:
        """Whether a value's memory may be written after one position, up to another.

        Args:
            node: The value.
            first: Position after which writes count.
            last: Last position at which they count.
            ignoring: Nodes whose writes do not count.
        """
        return any(
            first < self.order[writer] <= last and writer not in ignoring
            for writer in self.writers.get(self.storage.get(node, node), ())
        )

    def overwrites(self, node: fx.Node) -> Refusal | None:
        """Why an operator in place is none that a form could stand for: somebody sees the write.

        It is one only if its own value is read, and what it wrote to by no other name any more.
        """
        if self.unread.issuperset(node.users):
            return Refusal("it writes in place, and nobody reads the result")
        position = self.order[node]
        for target in self.written[node]:
            for member in self.alias_class(target):
                if self.order[member] >= position:
                    continue
                if member.op in ("placeholder", "get_attr"):
                    return Refusal("it writes to the model's input or to a parameter in place")
                readers = member.users.keys() - self.unread
                if any(self.order[user] > position for user in readers):
                    return Refusal("it writes in place to a value that is read later")
        return None

    def computed_for(self, nodes: Collection[fx.Node], dead: Collection[fx.Node]) -> int:
        """How many operators compute constants for some nodes alone.

        Args:
            nodes: The nodes.
            dead: Nodes that read nothing, or nothing any more.
        """
        found: set[fx.Node] = set()
        pending = [operand for node in nodes for operand in node.all_input_nodes]
        while pending:
            node = pending.pop()
            known = node in self.sources and node not in self.numbers and node.op != "get_attr"
            if known and all(user in found or user in dead for user in node.users):
                found.add(node)
                pending.extend(node.all_input_nodes)
        views = (any(member.op == "get_attr" for member in self.alias_class(n)) for n in found)
        return len(found) - sum(views)

    @cached_property
    def made(self) -> set[fx.Node]:
        """Constants that a forward makes of numbers, and what is computed of them."""
        found: set[fx.Node] = set()
        for node in self.sources:
            if node.target in CONSTANT_FACTORIES or not found.isdisjoint(node.all_input_nodes):
                found.add(node)
        return found

    def constant(self, node: fx.Node) -> Any:
        """The value of a constant node: the tensor itself, or computed in float64."""
        return self._computed(node, self.constants, in_float64)

    def constant_as_it_runs(self, node: fx.Node) -> Any:
        """The value of a constant node in the type that it has when the model runs."""
        return self._computed(node, {}, lambda value: value)

    def _computed(
        self, node: fx.Node, values: dict[fx.Node, Any], convert: Callable[[Any], Any]
    ) -> Any:
        pending = [node]
        while pending:
            current = pending[-1]
            missing = [arg for arg in current.all_input_nodes if arg not in values]
            if missing and current not in values:
                pending.extend(missing)
                continue
            pending.pop()
            if current in values:
                continue
            if current.op == "get_attr":
                values[current] = fetch(self.root, str(current.target))
                continue
            try:
                values[current] = self._run(current, values, convert)
            except RuntimeError:  # an operator for one type only
                values[current] = self._run(current, values, lambda value: value)
        return values[node]

    def _run(
        self, node: fx.Node, values: Mapping[fx.Node, Any], convert: Callable[[Any], Any]
    ) -> Any:
        """The value of a node whose operands are known constants."""
        written = self.written.get(node, ())

        def read(argument: fx.Node) -> Any:
            value = convert(values[argument])
            return value.clone() if argument in written else value

        return run_function(node, fx.map_arg(node.args, read), fx.map_arg(node.kwargs, read))


def gather(
    root: nn.Module,
    graph: fx.Graph,
    rules: Rules,
    shapes: Mapping[fx.Node, torch.Size],
    dtypes: Mapping[fx.Node, torch.dtype],
    ranks: Mapping[fx.Node, int] | None = None,
    calls: Iterable[tuple[Sequence[fx.Node], Sequence[fx.Node]]] = (),
    *,
    inner: bool = False,
) -> Facts:
    """Collect what is known of a graph.

    Args:
        root: The module that the graph's paths refer to.
        graph: The flat graph.
        rules: The rules of this call.
        shapes: Shapes seen in a run on example inputs.
        dtypes: Types seen in that run.
        ranks: Numbers of axes that are known beforehand.
        calls: What the modules in the graph are given, and what they return.
        inner: Whether other code of the model, which is not known, reads what it returns.
    """
    nodes = list(graph.nodes)
    order = {node: index for index, node in enumerate(nodes)}
    effects = {node: effects_of(node, root, rules) for node in nodes}
    sources: dict[fx.Node, frozenset[str]] = {}
    numbers: set[fx.Node] = set()
    for node in nodes:
        if node.op == "get_attr":
            value = fetch(root, str(node.target))
            if isinstance(value, Tensor) and not is_plain(value):
                continue
            sources[node] = frozenset((str(node.target),))
        elif (
            node.op in ("call_function", "call_method")
            and (node.all_input_nodes or node.target in CONSTANT_FACTORIES)
            and all(argument in sources for argument in node.all_input_nodes)
            and (effects[node].pure or _returns_what_it_wrote(node, effects[node]))
        ):
            sources[node] = frozenset().union(*(sources[arg] for arg in node.all_input_nodes))
        if reads_metadata(node) or (
            Trait.NUMBERS in traits(node)
            and node.all_input_nodes
            and all(argument in numbers for argument in node.all_input_nodes)
        ):
            numbers.add(node)
            effects[node] = Effects(False, ())
    facts = Facts(root, order, sources, numbers, {}, dict(shapes), dict(dtypes), inner=inner)
    for node in reversed(nodes):
        asserts = node.target is torch._assert
        if (asserts or node in numbers) and facts.asserted.issuperset(node.users):
            facts.asserted.add(node)
        drops = effects[node].pure and not asserts and node.op not in ("placeholder", "output")
        if drops and facts.unread.issuperset(node.users):
            facts.unread.add(node)
    facts.passed = _find_passed(facts.unread, calls)
    _find_aliases(facts, nodes, effects)
    _find_unsteady(facts, nodes, rules)
    facts.by_layout = {
        node
        for node in nodes
        if draws_by_layout(node)
        or (may_copy(node, root) and facts.write_between(node, order[node], len(nodes)))
    }
    _drop_changing(facts)
    known = {**_known_ranks(facts), **(ranks or {})}
    facts.ranks, facts.ones = find_axes(nodes, root, known)
    return facts


def _returns_what_it_wrote(node: fx.Node, effects: Effects) -> bool:
    """Whether a node only writes to its first operand, and returns it."""
    if effects.random or effects.writes != node.args[:1]:
        return False
    known = Trait.RETURNS_WHAT_IT_WROTE in traits(node)
    return known or returns_what_it_wrote(node.op, node.target, node.kwargs)


def _drop_changing(facts: Facts) -> None:
    """Forget constants that somebody writes to: they are none, before the write neither.

    The next call of the model finds another value. Not so where a forward makes a tensor and fills
    it: each write makes another constant, if what it writes to has no other name any more.
    """
    sources = facts.sources
    paths = frozenset[str]().union(*sources.values())
    tensors = {path: fetch(facts.root, path) for path in paths}
    written = {
        path
        for path, value in tensors.items()
        if isinstance(value, Tensor) and memory(value) in facts.unsteady
    }
    while True:
        changing = {
            top
            for top, writers in facts.writers.items()
            if not sources.keys() >= set(writers) or any(map(facts.overwrites, writers))
        }
        gone = [
            node
            for node in sources
            if written & sources[node]
            or facts.storage.get(node, node) in changing
            or not sources.keys() >= set(node.all_input_nodes)
        ]
        if not gone:
            return
        for node in gone:
            del sources[node]


def _find_passed(
    unread: set[fx.Node], calls: Iterable[tuple[Sequence[fx.Node], Sequence[fx.Node]]]
) -> set[fx.Node]:
    """What a module is given, or returns besides something that is read, is computed, too."""
    passed: set[fx.Node] = set()
    for given, returned in reversed(list(calls)):
        if unread.issuperset(returned) and passed.isdisjoint(returned):
            continue
        pending = [*given, *returned]
        while pending:
            node = pending.pop()
            if node in unread and node not in passed:
                passed.add(node)
                pending.extend(node.all_input_nodes)
    return passed


def _known_ranks(facts: Facts) -> dict[fx.Node, int]:
    ranks = {node: len(shape) for node, shape in facts.shapes.items()}
    for node in facts.sources:
        if node not in ranks:
            value = facts.constant(node)
            if isinstance(value, Tensor):
                ranks[node] = value.dim()
    return ranks


def _find_aliases(facts: Facts, nodes: list[fx.Node], effects: Mapping[fx.Node, Effects]) -> None:
    parent: dict[fx.Node, fx.Node] = {}

    def find(node: fx.Node) -> fx.Node:
        while (above := parent.get(node, node)) is not node:
            parent[node] = parent.get(above, above)
            node = above
        return node

    for node in nodes:
        if effects[node].aliases and node.op != "output" and node not in facts.numbers:
            # An operator in place returns what it wrote to, and nothing of its other operands.
            for argument in effects[node].writes or node.all_input_nodes:
                if argument not in facts.numbers:
                    parent[find(argument)] = find(node)
    readers: dict[int, fx.Node] = {}
    for node in nodes:
        if node.op == "get_attr":
            value = fetch(facts.root, str(node.target))
            if isinstance(value, Tensor):
                parent[find(node)] = find(readers.setdefault(memory(value), node))
    for node in nodes:
        top = find(node)
        facts.storage[node] = top
        facts.members.setdefault(top, []).append(node)
        written = effects[node].writes
        if written:
            facts.written[node] = written
        for argument in written:
            facts.writers.setdefault(find(argument), []).append(node)


def _find_unsteady(facts: Facts, nodes: list[fx.Node], rules: Rules) -> None:
    """Find the parameters and buffers that somebody may write to."""
    for node in nodes:
        if node.op == "get_attr" and facts.writers.get(facts.storage[node]):
            value = fetch(facts.root, str(node.target))
            if isinstance(value, Tensor):
                facts.unsteady.add(memory(value))
        elif node.op == "call_module":
            module = fetch(facts.root, str(node.target))
            known = type(module).__module__.startswith("torch.nn.modules")
            if not known and rules.find(type(module)) is None:  # its code may do anything
                tensors = (*module.parameters(), *module.buffers())
                facts.unsteady.update(map(memory, tensors))
