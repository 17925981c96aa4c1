"""Which values of a graph depend on parameters and buffers only, and what they are."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.algebra import computed, note_origin
from reparam.analysis.aliasing import Memory
from reparam.analysis.effects import Effects
from reparam.analysis.types_of_inputs import OwnType, asks_for_own, moved_to, own_type
from reparam.capture import (
    CONSTANT_FACTORIES,
    Trace,
    Trait,
    converts,
    is_of_torch,
    returns_what_it_wrote,
    traits,
)
from reparam.modules import (
    Layer,
    call_exact,
    fetch,
    has_hooks,
    in_float64,
    is_plain,
    join,
    memory,
    run_method,
    special_tensor,
    undisturbed,
)
from reparam.rules import Rules


@dataclass(frozen=True, eq=False)
class Constants:
    """The constants of one graph.

    Args:
        root: The module that the graph's paths refer to.
        sources: For each constant the parameters and buffers that it depends on.
        written: What each node may write to.
        own: The type and the device of the model.
        told: The nodes that ask for them, of a value that depends on the input.
        moved: Of each constant that is moved to where such a value is the value.
    """

    root: nn.Module
    sources: Mapping[fx.Node, frozenset[str]]
    written: Mapping[fx.Node, tuple[fx.Node, ...]]
    own: OwnType
    told: Collection[fx.Node]
    moved: Mapping[fx.Node, fx.Node]
    _exact: dict[fx.Node, Any] = field(default_factory=dict)
    _as_it_runs: dict[fx.Node, Any] = field(default_factory=dict)

    @cached_property
    def made(self) -> set[fx.Node]:
        """Constants that a forward makes of numbers, and what is computed of them."""
        made: set[fx.Node] = set()
        for node in self.sources:
            if node.target in CONSTANT_FACTORIES or not made.isdisjoint(node.all_input_nodes):
                made.add(node)
        return made

    def exact(self, node: fx.Node) -> Any:
        """The value of a constant: the tensor itself, or computed in float64.

        What jumps is computed as the model does, which may round to the other side of a step; so
        is what an operator computes that runs in one type only.
        """
        for constant in self._in_order(node, self._exact):
            self._exact[constant] = self._exactly(constant)
        return self._exact[node]

    def as_it_runs(self, node: fx.Node) -> Any:
        """The value of a constant in the type that it has when the model runs."""
        for constant in self._in_order(node, self._as_it_runs):
            value = self._run(constant, self._as_it_runs, exactly=False)
            self._as_it_runs[constant] = value
        return self._as_it_runs[node]

    def operands(self, node: fx.Node) -> list[fx.Node]:
        """The values that a constant is computed of, but for what only tells where it is."""
        tells = self.moved.get(node)
        return [
            each for each in node.all_input_nodes if each not in self.told and each is not tells
        ]

    def _in_order(self, node: fx.Node, there: Collection[fx.Node]) -> Iterator[fx.Node]:
        """A node and what it is computed of, in order; what is yielded joins what is there."""
        pending = [node]
        while pending:
            missing = [arg for arg in self.operands(pending[-1]) if arg not in there]
            if pending[-1] in there:
                pending.pop()
            elif missing:
                pending.extend(missing)
            else:
                yield pending.pop()

    def _exactly(self, node: fx.Node) -> Any:
        """The value of a node, those of whose operands are there."""
        if Trait.DISCONTINUOUS not in traits(node) or converts(node):
            try:
                return self._run(node, self._exact, exactly=True)
            except Exception:  # an operator for one type only
                pass
        return self.as_it_runs(node)

    def _run(self, node: fx.Node, values: Mapping[fx.Node, Any], *, exactly: bool) -> Any:
        """The value of a node whose operands are known, in float64 or as it runs."""
        if node.op == "get_attr":
            return fetch(self.root, str(node.target))
        written = self.written.get(node, ())

        def read(operand: fx.Node) -> Any:
            if operand in self.told:
                return self.own.told(str(operand.args[1]), exactly=exactly)
            if operand is self.moved.get(node):
                return self.own.like(exactly=exactly)
            value = computed(in_float64, values[operand]) if exactly else values[operand]
            return computed(torch.clone, value) if operand in written else value

        args, kwargs = fx.map_arg((node.args, node.kwargs), read)
        if node.op == "call_method":
            return computed(partial(run_method, str(node.target)), *args, **kwargs)
        if node.op == "call_function":
            function: Any = node.target
            return computed(function, *args, **kwargs)
        return self._called(node, args, kwargs, exactly=exactly)

    def _called(self, node: fx.Node, args: Any, kwargs: Any, *, exactly: bool) -> Any:
        """What a module makes of constants; it stays known of which of its tensors, too."""
        module = fetch(self.root, str(node.target))
        held = dict(chain(module.named_parameters(), module.named_buffers()))
        if exactly:
            self.as_it_runs(node)  # which shows whether it is steady
            value = call_exact(module, args, kwargs, {})
        else:
            with undisturbed(module) as watch:
                value = module(*args, **kwargs)
            if watch.drew or watch.changed:
                raise _UnsteadyError(f"{node.target} returns something else each time")
        note_origin(value, Layer(module, exactly=exactly), (held, *args), kwargs)
        return value


class _UnsteadyError(Exception):
    """A module of constants is no constant: it changes its state, or draws random numbers."""


def find_constants(
    trace: Trace,
    effects: Mapping[fx.Node, Effects],
    shared: Memory,
    rules: Rules,
) -> Constants:
    """Find the values that are the same in every call of the model."""
    root = trace.root
    sources: dict[fx.Node, frozenset[str]] = {}
    place = own_type(root)
    told = {node for node in effects if asks_for_own(node, place, root)}
    targets = {node: moved_to(node, place, root) for node in effects}
    moved = {node: target for node, target in targets.items() if target is not None}
    constants = Constants(root, sources, shared.written, place, told, moved)
    for node, effect in effects.items():
        operands = constants.operands(node)
        if node.op == "get_attr":
            value = fetch(root, str(node.target))
            same = str(node.target) not in trace.kept
            if same and (not isinstance(value, Tensor) or is_plain(value)):
                sources[node] = frozenset((str(node.target),))
        elif (
            (operands or node.target in CONSTANT_FACTORIES)
            and all(operand in sources for operand in operands)
            and (effect.pure or _returns_what_it_wrote(node, effect, root))
            and (own := _own_sources(node, root, rules)) is not None
        ):
            sources[node] = own.union(*(sources[operand] for operand in operands))
    steady = replace(constants, sources=_steady(constants, shared))
    return replace(steady, sources=_computable(steady))


def _own_sources(node: fx.Node, root: nn.Module, rules: Rules) -> frozenset[str] | None:
    """The tensors that a node holds besides its operands; None if nobody knows what it computes."""
    if node.op != "call_module":
        return frozenset() if node.op in ("call_function", "call_method") else None
    path = str(node.target)
    module = fetch(root, path)
    taught = rules.find(type(module)) is not None
    parts = () if taught else module.modules()
    known = all(is_of_torch(type(part)) and "forward" not in vars(part) for part in parts)
    if not known or any(map(has_hooks, module.modules())) or special_tensor(module) is not None:
        return None
    held = chain(module.named_parameters(), module.named_buffers())
    return frozenset(join(path, name) for name, _ in held)


def _computable(steady: Constants) -> dict[fx.Node, frozenset[str]]:
    """The constants that can be computed without a run of the model."""
    sources: dict[fx.Node, frozenset[str]] = {}
    for node, paths in steady.sources.items():
        if sources.keys() >= set(steady.operands(node)):
            try:
                steady.exact(node)
            except Exception:  # whatever torch, or a user's function, raises
                continue
            sources[node] = paths
    return sources


def _returns_what_it_wrote(node: fx.Node, effects: Effects, root: nn.Module) -> bool:
    """Whether a node only writes to its first operand, and returns it."""
    if effects.random or effects.writes != node.args[:1]:
        return False
    if node.op == "call_module":
        module = fetch(root, str(node.target))
        return is_of_torch(type(module)) and getattr(module, "inplace", False) is True
    surely = returns_what_it_wrote(node.op, node.target, node.kwargs)
    return surely or Trait.RETURNS_WHAT_IT_WROTE in traits(node)


def _steady(constants: Constants, shared: Memory) -> Mapping[fx.Node, frozenset[str]]:
    """Constants without those that somebody writes to: they are none, before the write neither.

    The next call of the model finds another value. Not so where a forward makes a tensor and fills
    it: each write makes another constant, if what it writes to has no other name any more.
    """
    sources = constants.sources
    paths = frozenset[str]().union(*sources.values())
    tensors = {path: fetch(constants.root, path) for path in paths}
    written = {
        path
        for path, value in tensors.items()
        if isinstance(value, Tensor) and memory(value) in shared.unsteady
    }
    while True:
        changing = {
            place
            for place, writers in shared.writers.items()
            if not sources.keys() >= set(writers)
            or any(shared.overwrites(writer) for writer in writers)
        }
        steady = {
            node: paths
            for node, paths in sources.items()
            if not written & paths
            and changing.isdisjoint(shared.places[node])
            and sources.keys() >= set(constants.operands(node))
        }
        if len(steady) == len(sources):
            return steady
        sources = steady
