"""Cut out of an edited graph what becomes one module's own code."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from reparam.capture import (
    Built,
    Call,
    WayIn,
    calls_between,
    checked_same,
    nodes_in,
    reached,
    written_into,
)
from reparam.modules import join
from reparam.rewriting.changes import Rewrite


class GraftError(Exception):
    """The edited graph cannot be put back without changing the code of calls that must stay."""

    def __init__(self, reason: str, calls: Collection[Call]) -> None:
        super().__init__(reason)
        self.reason = reason
        self.calls = calls


class TornError(GraftError):
    """Code that becomes a part of its caller's was planned for as code of its own."""


class UnlikeError(GraftError):
    """Calls of one module would need different code, though they were edited alike."""


@dataclass(frozen=True)
class Slicer:
    """Cuts the code of single modules out of an edited graph.

    Args:
        rewrite: The edited trace.
        inside: The nodes inside each call, in order.
        inlined: The calls whose code becomes a part of their caller's.
        paths: For each path of a module all paths of that module.
    """

    rewrite: Rewrite
    inside: Mapping[Call, Sequence[fx.Node]]
    inlined: Collection[Call]
    paths: Mapping[str, Sequence[str]]

    def called_from(self, owner: Call, caller: Call) -> Call | None:
        """The outermost call below the owner that stays a call, if the caller is inside one."""
        around = [call for call in calls_between(caller, owner) if call not in self.inlined]
        return around[-1] if around else None

    def run_by(self, way: WayIn) -> list[fx.Node]:
        """The nodes that new code of a method has to run, in order.

        Raises:
            GraftError: If the method did more than compute its result from its arguments, or might
                do something else with others: an operator in it may rest on what one argument was
                computed of, or on two being the same.
        """
        current, present = self.rewrite.current, self.inside[way.owner]
        arguments, results = [*nodes_in(way.call.arguments)], [*nodes_in(way.call.result)]
        ends = {*arguments, *results}
        given, returned = set(map(current, arguments)), map(current, results)
        run = reached(returned, lambda node: () if node in given else node.all_input_nodes) - given
        left = set(map(self.rewrite.copy, way.nodes)).intersection(present) - run
        joined = [self.rewrite.stand_for.get(node, frozenset()) for node in run]
        if (
            not self.rewrite.by_size.isdisjoint(run)
            or len(given) < len(arguments)
            or not all(map(set(way.nodes).issuperset, joined))
            or way.owner.keeps
            or not (self.rewrite.dead | self.rewrite.altered).isdisjoint(ends)
            or any(node.op != "get_attr" for node in (*left, *run.difference(present)))
        ):
            raise GraftError(f"{way.name} does more than compute its result", [way.owner])
        return [node for node in present if node in run]

    def named(self, path: str, owner: Call) -> str:
        """The same as `path_below`; raises a GraftError if it lies elsewhere."""
        relative = path_below(owner, path, self.paths)
        if relative is None:
            raise GraftError(f"{path} is not below {owner.path}", [owner])
        return relative


class NewCode:
    """What becomes the forward of one module, its children called and not inlined.

    Making it raises a GraftError if it would read what it cannot see.

    Args:
        slicer: Cuts it out of the edited graph.
        call: The call that it is made for.
        way: The method that it is made for, if that is another one.

    Attributes:
        graph: The code.
        baked: The arguments that tracing took as constants.
        parameters: The names of the others.
    """

    def __init__(self, slicer: Slicer, call: Call, way: WayIn | None = None) -> None:
        self.slicer = slicer
        self.owner = call
        self.call = call = way.call if way else call
        self.graph = fx.Graph()
        self._values: dict[fx.Node, fx.Node] = {}
        self._given: set[fx.Node] = set()
        arguments = call.arguments.items()
        self.baked = {name: value for name, value in arguments if not _holds_nodes(value)}
        self.parameters = tuple(name for name in call.arguments if name not in self.baked)
        placeholders = {name: self._placeholder(name) for name in self.parameters}
        # Where two arguments became one value, code reads the one that is that value.
        for name in sorted(self.parameters, key=self._is_dead):
            self._unpack(call.arguments[name], placeholders[name], name)
        self._write(slicer.inside[call] if way is None else slicer.run_by(way))
        result = (call.result, call.keeps) if call.keeps else call.result
        self.graph.output(written_into(self.graph, result, self._read))

    def _write(self, nodes: Iterable[fx.Node]) -> None:
        """Write nodes, and one call for all nodes in a call that stays one."""
        slicer, graph, called = self.slicer, self.graph, set[Call]()
        for node in nodes:
            inner = slicer.called_from(self.owner, slicer.rewrite.caller[node])
            if inner is None and node.op not in ("placeholder", "output", "get_attr"):
                self._values[node] = copied = graph.node_copy(node, self._read)
                if node.op == "call_module":
                    copied.target = slicer.named(str(node.target), self.call)
            elif inner is not None and inner not in called:
                called.add(inner)
                path = slicer.named(inner.path, self.call)
                args = written_into(graph, inner.args, self._read)
                kwargs = written_into(graph, inner.kwargs, self._read)
                self._unpack(inner.result, graph.call_module(path, args, kwargs))

    def _placeholder(self, name: str) -> fx.Node:
        module, default = self.call.module, inspect.Parameter.empty
        if isinstance(module, fx.GraphModule):  # nothing but its graph says what may be left out
            default = inspect.signature(module.forward).parameters[name].default
        return self.graph.placeholder(name, default_value=default)

    def _is_dead(self, name: str) -> bool:
        """Whether an argument holds a value that is computed no more."""
        return not self.slicer.rewrite.dead.isdisjoint(nodes_in(self.call.arguments[name]))

    def _read(self, node: fx.Node) -> fx.Node:
        """What stands for a node of the edited graph."""
        node = self.slicer.rewrite.current(node)
        if node not in self._values:
            if node.op != "get_attr":
                where = self.call.path or "the model"
                raise GraftError(f"{node} is not visible in {where}", [self.call])
            path = self.slicer.named(str(node.target), self.call)
            self._values[node] = self.graph.get_attr(path)
        return self._values[node]

    def _unpack(self, structure: Any, whole: fx.Node, argument: str = "") -> None:
        """Name the values inside an argument or a result."""
        entries: Iterable[tuple[Any, Any]] = ()
        read: Callable[..., Any] = operator.getitem
        if isinstance(structure, fx.Node):
            value = self.slicer.rewrite.current(structure)
            first = self._values.setdefault(value, whole)
            if argument and structure in self._given:
                self._values[value] = self._checked_same(first, whole, argument)
            elif argument:
                self._given.add(structure)
        elif isinstance(structure, Built):
            entries = structure.entries.items()
            read = operator.getitem if structure.by_key else getattr
        elif isinstance(structure, dict):
            entries = structure.items()
        elif isinstance(structure, tuple | list):
            entries = enumerate(structure)
        for key, entry in entries:
            if _holds_nodes(entry):
                self._unpack(entry, self.graph.call_function(read, (whole, key)), argument)

    def _checked_same(self, first: fx.Node, second: fx.Node, argument: str) -> fx.Node:
        """One of two arguments for which the caller that was traced gave one value."""
        text = (
            f"{self.call.path or 'the model'} was fused for a caller that gives {argument!r} the "
            "same value as another argument; keep a copy of the original for other calls"
        )
        return self.graph.call_function(checked_same, (first, second, text))


def is_given_twice(call: Call) -> bool:
    """Whether a call gives one value as several arguments, or several times in one."""
    given = list(nodes_in(call.arguments))
    return len(given) > len(set(given))


def _holds_nodes(structure: Any) -> bool:
    return any(True for _ in nodes_in(structure))


def path_below(owner: Call, path: str, paths: Mapping[str, Sequence[str]]) -> str | None:
    """The path of a module or tensor as seen from an owner; None if it lies elsewhere.

    The path is one below the root, which may not be the only one: `paths` has all of each module.
    """
    if not owner.path:
        return path
    prefix = f"{owner.path}."
    if path.startswith(prefix):
        return path[len(prefix) :]
    holder, _, name = path.rpartition(".")
    for others, rest in ((paths.get(path, ()), ""), (paths.get(holder, ()), name)):
        for other in others:
            if other.startswith(prefix):
                return join(other[len(prefix) :], rest)
            if rest and other == owner.path:
                return rest
    return None
