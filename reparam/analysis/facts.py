"""What is known of the values of one graph: constants, axes, memory, and who needs them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.analysis.aliasing import Memory, find_memory
from reparam.analysis.constants import Constants, find_constants
from reparam.analysis.effects import Effects, effects_of
from reparam.analysis.features import rows_of_features
from reparam.analysis.ranks import certain_ranks, find_axes
from reparam.analysis.types_of_inputs import READS_FLOATS, name_of_torchs
from reparam.capture import (
    Call,
    Kept,
    Trace,
    Trait,
    contexts_around,
    nodes_in,
    reads_metadata,
    traits,
)
from reparam.modules import fetch, has_hooks
from reparam.rules import Rules


@dataclass(frozen=True, eq=False)
class Granted:
    """The nodes whose forms rest on what is taken for granted of what they read.

    Args:
        axes: Those that rest on the number of its axes.
        channels: Those that rest on the number of its channels.
    """

    axes: frozenset[fx.Node] = frozenset()
    channels: frozenset[fx.Node] = frozenset()


NOTHING_GRANTED = Granted()


@dataclass(frozen=True, eq=False)
class Facts:
    """What is known of one graph.

    Args:
        root: The module that the graph's paths refer to.
        order: Position of each node.
        numbers: Nodes whose value is no tensor but a size or a flag.
        asserted: Nodes that only feed assertions on shapes and types.
        unread: Nodes without effect whose value nobody reads.
        passed: Those of these that modules are given or return, and so are computed.
        memory: Which values share memory, and who writes to it.
        constants: The values that depend on parameters and buffers only.
        sources: For each of these the parameters and buffers that it depends on.
        shapes: Shapes of values, where example inputs were given.
        fixed: Those of them that values have for every input: a program is bound to them.
        dtypes: Types of values, where example inputs were given.
        ranks: Number of axes of a value, where known.
        other_ranks: What else that number may be where it is taken for granted.
        ones: Number of last axes that have size 1, where known.
        by_layout: Nodes that do something else if their operand lies otherwise in memory.
        inner: Whether other code of the model, which is not known, reads what the graph returns.
        recorded: Whether shapes are a program's own, not only those of example inputs.
        contexts: The contexts in which nodes run, from the outermost one.
        recomputed: The calls around a node that checkpointing may run again, from their arguments.
        granted: What the forms of values rest on that is taken for granted of their operands.
    """

    root: nn.Module
    order: Mapping[fx.Node, int]
    numbers: set[fx.Node]
    asserted: set[fx.Node]
    unread: set[fx.Node]
    passed: set[fx.Node]
    memory: Memory
    constants: Constants
    sources: Mapping[fx.Node, frozenset[str]]
    shapes: Mapping[fx.Node, torch.Size]
    fixed: Mapping[fx.Node, torch.Size]
    dtypes: Mapping[fx.Node, torch.dtype]
    ranks: Mapping[fx.Node, int]
    other_ranks: Sequence[Mapping[fx.Node, int]]
    ones: Mapping[fx.Node, int]
    by_layout: set[fx.Node]
    inner: bool
    recorded: bool
    contexts: Mapping[fx.Node, tuple[Any, ...]]
    recomputed: Mapping[fx.Node, frozenset[Call]]
    granted: Granted = NOTHING_GRANTED

    @cached_property
    def idle(self) -> set[fx.Node]:
        """Nodes that no code has to compute."""
        return self.unread - self.passed

    @cached_property
    def read_as_floats(self) -> set[fx.Node]:
        """Values that meet parameters as they are, or after what leaves their type alone."""
        meeting: set[fx.Node] = set()
        reading: set[fx.Node] = set()
        for node in reversed([*self.order]):
            if not reading.isdisjoint(node.users):
                meeting.add(node)
            passes = node in meeting and Trait.PASSES_TYPE in traits(node, self.root)
            if passes or READS_FLOATS.search(name_of_torchs(node, self.root)):
                reading.add(node)
        return meeting

    def operands(self, node: fx.Node) -> list[fx.Node]:
        """The tensors that a node reads and that depend on the model's input."""
        sources, numbers = self.sources, self.numbers
        return [arg for arg in node.all_input_nodes if arg not in sources and arg not in numbers]

    def rests_on_granted(self, nodes: Collection[fx.Node]) -> bool:
        """Whether the form of one of some nodes rests on what is taken for granted."""
        return not (self.granted.axes | self.granted.channels).isdisjoint(nodes)

    def computed_for(self, nodes: Collection[fx.Node], dead: Collection[fx.Node]) -> int:
        """How many operators compute constants for some nodes alone."""
        computing: set[fx.Node] = set()
        pending = [operand for node in nodes for operand in node.all_input_nodes]
        while pending:
            node = pending.pop()
            constant = node in self.sources and node not in self.numbers and node.op != "get_attr"
            if constant and all(user in computing or user in dead for user in node.users):
                computing.add(node)
                pending.extend(node.all_input_nodes)
        views = (
            any(n.op == "get_attr" for n in self.memory.alias_class(node)) for node in computing
        )
        return len(computing) - sum(views)


def gather(
    trace: Trace,
    rules: Rules,
    shapes: Mapping[fx.Node, torch.Size],
    dtypes: Mapping[fx.Node, torch.dtype],
    ranks: Mapping[fx.Node, int],
    fixed: Mapping[fx.Node, torch.Size],
) -> Facts:
    """Collect what is known of a graph, of whose values some shapes, types and ranks are known.

    Fixed are the shapes that do not depend on the input.
    """
    root, nodes = trace.root, list(trace.graph.nodes)
    numbers = _numbers(nodes)
    effects = {
        node: Effects(False, ()) if node in numbers else effects_of(node, root, rules)
        for node in nodes
    }
    asserted, unread = _unneeded(effects, numbers)
    memory = find_memory(root, effects, numbers, unread, _held(trace), {*shapes, *ranks}, rules)
    if writes_for_nobody := _writes_for_nobody(effects, memory):
        asserted, unread = _unneeded(effects, numbers, writes_for_nobody)
        memory = replace(memory, unread=unread)
    constants = find_constants(trace, effects, memory, rules)
    known_ranks = {node: len(shape) for node, shape in shapes.items()}
    held = {node: constants.exact(node) for node in constants.sources}
    held_shapes = {node: value.shape for node, value in held.items() if isinstance(value, Tensor)}
    known_ranks |= {node: len(shape) for node, shape in held_shapes.items() if node not in shapes}
    told = dict(ranks)  # by more than example inputs
    told |= {node: known_ranks[node] for node in constants.sources if node in known_ranks}
    told |= {node: node.target.tensor.dim() for node in nodes if isinstance(node.target, Kept)}
    by_code = find_axes(nodes, root, told)
    axes, ones = find_axes(nodes, root, known_ranks | told) if shapes and not ranks else by_code
    features = rows_of_features(nodes, root, axes, held_shapes)
    if features:
        axes, ones = find_axes(nodes, root, axes | features)
    certain = certain_ranks(nodes, root, told)
    granted = {node: axes[node] for node in axes.keys() - certain.keys()}
    return Facts(
        root=root,
        order=memory.order,
        numbers=numbers,
        asserted=asserted,
        unread=unread,
        passed=_passed(unread, trace.calls),
        memory=memory,
        constants=constants,
        sources=constants.sources,
        shapes=shapes,
        fixed=fixed,
        dtypes=dtypes,
        ranks=axes,
        other_ranks=_other_ranks(granted, by_code[0]),
        ones=ones,
        by_layout={node for node in nodes if _minds_layout(node, root, memory)},
        inner=bool(trace.path),
        recorded=bool(ranks),
        contexts=contexts_around(nodes),
        recomputed=_recomputed(trace),
    )


def _held(trace: Trace) -> set[fx.Node]:
    """Values that a module which keeps something, or a hook, may go on looking at."""
    held: set[fx.Node] = set()
    for call in trace.stateful:
        held.update(nodes_in((call.args, call.kwargs, call.result)))
    for call in trace.calls:
        held.update(nodes_in(call.keeps))
    for node in trace.graph.nodes:
        hooked = node.op == "call_module" and has_hooks(fetch(trace.root, str(node.target)))
        if hooked:
            held.update((node, *node.all_input_nodes))
        elif trace.stateful and not trace.stateful.isdisjoint(trace.caller[node].ancestry()):
            held.add(node)
    return held


def _other_ranks(
    granted: Mapping[fx.Node, int], by_code: Mapping[fx.Node, int]
) -> list[Mapping[fx.Node, int]]:
    """What else numbers of axes may be, that are taken for granted: all alike more or fewer.

    Where operators of the code tell, one less, as without a batch, or what they usually get.
    Otherwise there is only what is likely, or what example inputs have: it may be any.
    """
    others: list[Mapping[fx.Node, int]] = []
    for shift in (-1, 1, -2, 2, -3):
        ranks = {
            node: max(rank + shift, 1)
            for node, rank in granted.items()
            if node not in by_code or shift == ((by_code[node] - rank) or -1)
        }
        if ranks:
            others.append(ranks)
    return others


def _numbers(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Sizes, types and flags, and the numbers that are computed of them."""
    numbers: set[fx.Node] = set()
    for node in nodes:
        operands = node.all_input_nodes
        arithmetic = Trait.NUMBERS in traits(node) and operands
        if reads_metadata(node) or (arithmetic and numbers.issuperset(operands)):
            numbers.add(node)
    return numbers


def _unneeded(
    effects: Mapping[fx.Node, Effects],
    numbers: set[fx.Node],
    writing: Collection[fx.Node] = (),
) -> tuple[set[fx.Node], set[fx.Node]]:
    """The nodes that only feed assertions, and those without effect whose value nobody reads.

    The effect of some that write in place is none, since nobody reads what they write.
    """
    asserted: set[fx.Node] = set()
    unread: set[fx.Node] = set()
    for node, effect in reversed(list(effects.items())):
        asserts = node.target is torch._assert
        if (asserts or node in numbers) and asserted.issuperset(node.users):
            asserted.add(node)
        pure = effect.pure or node in writing
        drops = pure and not asserts and node.op not in ("placeholder", "output")
        if drops and unread.issuperset(node.users):
            unread.add(node)
    return asserted, unread


def _writes_for_nobody(effects: Mapping[fx.Node, Effects], memory: Memory) -> set[fx.Node]:
    """Operators that do nothing but write in place, to memory that nobody reads any more.

    It is the graph's own, and no module or hook keeps it.
    """
    lasting = {place for place in memory.names if any(map(memory.lasts, memory.names[place]))}
    used, dead = {*memory.mixed}, set[fx.Node]()
    for node, effect in reversed(list(effects.items())):
        places = memory.places[node].union(*(memory.places[written] for written in effect.writes))
        only_writes = effect.writes and not (effect.random or effect.acts)
        if only_writes and places.isdisjoint(used) and places.isdisjoint(lasting):
            dead.add(node)
        elif node not in memory.unread:
            used.update(*(memory.places[operand] for operand in node.all_input_nodes))
    return dead


def _passed(unread: set[fx.Node], calls: Sequence[Call]) -> set[fx.Node]:
    """What a module is given, or returns besides something that is read, is computed, too."""
    passed: set[fx.Node] = set()
    for call in reversed(calls):
        returned = list(nodes_in(call.result))
        if unread.issuperset(returned) and passed.isdisjoint(returned):
            continue
        pending = [*nodes_in((call.args, call.kwargs)), *returned]
        while pending:
            node = pending.pop()
            if node in unread and node not in passed:
                passed.add(node)
                pending.extend(node.all_input_nodes)
    return passed


def _recomputed(trace: Trace) -> dict[fx.Node, frozenset[Call]]:
    """The calls that checkpointing may make again, around nodes in one."""
    again = {call for call in trace.calls if call.recomputed}
    if not again:
        return {}
    around = {node: again.intersection(call.ancestry()) for node, call in trace.caller.items()}
    return {node: frozenset(calls) for node, calls in around.items() if calls}


def _minds_layout(node: fx.Node, root: nn.Module, memory: Memory) -> bool:
    """Whether a node does something else if its operand lies otherwise in memory."""
    if Trait.DRAWS_BY_LAYOUT in traits(node):
        return True
    return Trait.MAY_COPY in traits(node, root) and memory.shows_copy(node)
