"""Cut out of an edited graph what becomes one module's own code."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import fx

from reparam.capture.structures import Built, nodes_in, written_into
from reparam.capture.trace import Call
from reparam.modules.tree import join
from reparam.rewriting.changes import Rewrite


class GraftError(Exception):
    """The edited graph cannot be put back without changing code that must stay.

    Args:
        reason: Why, in words for the report.
        calls: The calls whose code would have to change.
    """

    def __init__(self, reason: str, calls: Collection[Call]) -> None:
        super().__init__(reason)
        self.reason = reason
        self.calls = calls


class TornError(GraftError):
    """Code that becomes a part of its caller's was planned for as code of its own."""


class UnlikeError(GraftError):
    """Calls of one module would need different code, though they were edited alike."""


class Slicer:
    """Cuts the code of single modules out of an edited graph.

    Args:
        rewrite: The edited trace.
        inside: The nodes inside each call, in order.
        inlined: The calls whose code becomes a part of their caller's.
        paths: For each path of a module all paths of that module.
    """

    def __init__(
        self,
        rewrite: Rewrite,
        inside: Mapping[Call, Sequence[fx.Node]],
        inlined: Collection[Call],
        paths: Mapping[str, Sequence[str]],
    ) -> None:
        self.rewrite = rewrite
        self.caller = rewrite.caller
        self.inside = inside
        self.inlined = inlined
        self.paths = paths

    def slice(self, owner: Call) -> tuple[fx.Graph, dict[str, Any], tuple[str, ...]]:
        """The graph of one module's own forward, its children called and not inlined.

        Returns:
            The graph, the arguments that tracing took as constants, and the names of the others.
        """
        graph = fx.Graph()
        values: dict[fx.Node, fx.Node] = {}
        baked: dict[str, Any] = {}
        parameters: list[str] = []
        given: list[tuple[Any, fx.Node]] = []
        signature = inspect.signature(owner.module.forward)
        graph_module = isinstance(owner.module, fx.GraphModule)
        for name, argument in owner.arguments.items():
            if not any(True for _ in nodes_in(argument)):
                baked[name] = argument
                continue
            default = signature.parameters[name].default
            placeholder = graph.placeholder(
                name, default_value=default if graph_module else inspect.Parameter.empty
            )
            parameters.append(name)
            given.append((argument, placeholder))
        # Where two arguments became one value, code reads the one that is that value.
        for argument, placeholder in sorted(given, key=lambda pair: self._is_dead(pair[0])):
            self._unpack(graph, argument, placeholder, values)
        emitted: set[Call] = set()

        def read(node: fx.Node) -> fx.Node:
            node = self.rewrite.current(node)
            if node not in values:
                if node.op != "get_attr":
                    where = owner.path or "the model"
                    raise GraftError(f"{node} is not visible in {where}", [owner])
                values[node] = graph.get_attr(self.named(str(node.target), owner))
            return values[node]

        for node in self.inside[owner]:
            call = self.called_from(owner, self.caller[node])
            if call is not None:
                if call not in emitted:
                    emitted.add(call)
                    self._emit_call(graph, call, owner, read, values)
                continue
            if node.op in ("placeholder", "output", "get_attr"):
                continue
            copied = graph.node_copy(node, read)
            if node.op == "call_module":
                copied.target = self.named(str(node.target), owner)
            values[node] = copied
        graph.output(written_into(graph, owner.result, read))
        return graph, baked, tuple(parameters)

    def _is_dead(self, structure: Any) -> bool:
        return any(node in self.rewrite.dead for node in nodes_in(structure))

    def called_from(self, owner: Call, caller: Call) -> Call | None:
        """The outermost call below the owner that stays a call, if the caller is inside one."""
        found = None
        for call in caller.ancestry():
            if call is owner:
                return found
            if call not in self.inlined:
                found = call
        return found

    def _emit_call(
        self,
        graph: fx.Graph,
        call: Call,
        owner: Call,
        read: Callable[[fx.Node], fx.Node],
        values: dict[fx.Node, fx.Node],
    ) -> None:
        path = self.named(call.path, owner)
        args = written_into(graph, call.args, read)
        kwargs = written_into(graph, call.kwargs, read)
        result = graph.call_module(path, args, kwargs)
        self._unpack(graph, call.result, result, values)

    def _unpack(
        self,
        graph: fx.Graph,
        structure: Any,
        whole: fx.Node,
        values: dict[fx.Node, fx.Node],
    ) -> None:
        """Name the values inside an argument or a result."""
        if isinstance(structure, fx.Node):
            values.setdefault(self.rewrite.current(structure), whole)
            return
        entries: list[tuple[Any, Any]] = []
        by_key = True
        if isinstance(structure, Built):
            by_key = structure.by_key
            entries = list(structure.entries.items())
        elif isinstance(structure, dict):
            entries = list(structure.items())
        elif isinstance(structure, tuple | list):
            entries = list(enumerate(structure))
        for key, entry in entries:
            if any(True for _ in nodes_in(entry)):
                part = graph.call_function(operator.getitem if by_key else getattr, (whole, key))
                self._unpack(graph, entry, part, values)

    def relative(self, path: str, owner: Call) -> str | None:
        """The name of a module or tensor below an owner, which may not be its first one."""
        if not owner.path:
            return path
        prefix = f"{owner.path}."
        if path.startswith(prefix):
            return path[len(prefix) :]
        holder, _, name = path.rpartition(".")
        for paths, rest in ((self.paths.get(path, ()), ""), (self.paths.get(holder, ()), name)):
            for other in paths:
                if other.startswith(prefix):
                    return join(other[len(prefix) :], rest)
                if rest and other == owner.path:
                    return rest
        return None

    def named(self, path: str, owner: Call) -> str:
        """The same; raises a GraftError if it lies elsewhere."""
        relative = self.relative(path, owner)
        if relative is None:
            raise GraftError(f"{path} is not below {owner.path}", [owner])
        return relative
