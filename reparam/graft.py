"""Put an edited graph back into the module tree it was traced from.

Only modules whose own code changed get a new forward; every ancestor keeps its class, attributes
and methods, and goes on calling its children.
"""

from __future__ import annotations

import importlib
import inspect
import operator
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import fx, nn

from reparam.methods import names_of_public_methods
from reparam.modules import fetch, join
from reparam.rewriting import Rewrite, knows_only_tensors
from reparam.structures import Built, nodes_in, outline, written_into
from reparam.tracing import Call


class GraftError(Exception):
    """The edited graph cannot be put back without changing code that must stay."""


class FusedForward:
    """The forward of a module some of whose operators were fused.

    It is set on the instance and called like a method. Optional arguments keep the values they
    were traced with; a call with other values runs the forward that was there before.

    Args:
        owner: The module.
        code: Source of a function ``forward(self, ...)``.
        names: What the source refers to by name.
        parameters: Names of the parameters the function takes.
        positional: Whether these are the forward's first parameters, passed one by one.
        baked: Values of the parameters that tracing took as constants.
        outlines: Lengths and keys of the parameters that are containers.
        tensors: The parameters that the code has to find to be tensors.
        lengths: How many values some parameters have to hold at least.
    """

    def __init__(
        self,
        owner: nn.Module,
        code: str,
        names: dict[str, Any],
        parameters: tuple[str, ...],
        positional: bool,
        baked: dict[str, Any],
        outlines: dict[str, Any],
        tensors: frozenset[str] = frozenset(),
        lengths: dict[str, int] | None = None,
    ) -> None:
        self.owner = owner
        self.code = code
        self.names = names
        self.parameters = parameters
        self.positional = positional
        self.baked = baked
        self.outlines = outlines
        self.tensors = tensors
        self.lengths = lengths or {}
        self.original = vars(owner).get("forward")
        self.function = _compile(code, names)

    @property
    def __code__(self) -> CodeType:
        return self.function.__code__

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._original())

    def _original(self) -> Callable[..., Any]:
        """The forward that was there before: the class's, or one set on the instance."""
        return self.original or partial(type(self.owner).forward, self.owner)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the fused code, or the class's own for arguments that were not traced."""
        if self.positional and not kwargs and len(args) == len(self.parameters):
            return self.function(self.owner, *args)
        return self._call_by_name(args, kwargs)

    def _call_by_name(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bound = inspect.signature(self._original()).bind(*args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        other = any(
            given[name] is not value and not _equal(given[name], value)
            for name, value in self.baked.items()
        )
        # A tensor was traced where now there is none.
        other = other or any(given[name] is None for name in self.parameters)
        other = other or not all(isinstance(given[name], torch.Tensor) for name in self.tensors)
        other = other or any(len(given[name]) < count for name, count in self.lengths.items())
        if other or any(outline(given[name]) != was for name, was in self.outlines.items()):
            return self._original()(*args, **kwargs)
        return self.function(self.owner, *(given[name] for name in self.parameters))

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["function"]
        state["names"] = {
            name: ("module", value.__name__) if isinstance(value, ModuleType) else ("", value)
            for name, value in self.names.items()
        }
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.names = {
            name: importlib.import_module(value) if kind == "module" else value
            for name, (kind, value) in state["names"].items()
        }
        self.function = _compile(self.code, self.names)


def _equal(given: Any, traced: Any) -> bool:
    if isinstance(traced, dict) and type(given) is dict:
        return given.keys() == traced.keys() and all(_equal(given[k], traced[k]) for k in traced)
    plain = (int, float, str, bool, tuple, torch.dtype, type(None))
    return type(given) is type(traced) and isinstance(traced, plain) and bool(given == traced)


def _compile(code: str, names: dict[str, Any]) -> Callable[..., Any]:
    namespace = dict(names)
    exec(compile(code, "<fused forward>", "exec"), namespace)
    function: Callable[..., Any] = namespace["forward"]
    return function


def graft(rewrite: Rewrite, target: nn.Module) -> None:
    """Change a module tree as an edited trace says.

    Args:
        rewrite: The edited trace.
        target: The module tree to change: the traced root or a copy of it.
    """
    _Graft(rewrite, target).run()


class _Graft:
    def __init__(self, rewrite: Rewrite, target: nn.Module) -> None:
        self.rewrite = rewrite
        self.target = target
        self.trace = rewrite.trace
        self.nodes = list(self.trace.graph.nodes)
        self.position = {node: index for index, node in enumerate(self.nodes)}
        self.inside: dict[Call, list[fx.Node]] = {call: [] for call in self.trace.calls}
        for node in self.nodes:
            caller = self.trace.caller.get(node)
            for call in caller.ancestry() if caller is not None else ():
                self.inside[call].append(node)
        self.times = Counter(id(call.module) for call in self.trace.calls)
        self.paths: dict[str, list[str]] = {}
        several: dict[int, list[str]] = {}
        for path, module in self.trace.root.named_modules(remove_duplicate=False):
            several.setdefault(id(module), []).append(path)
            self.paths[path] = several[id(module)]
        self.edited = set(rewrite.edited)
        self.inlined: set[Call] = set()
        self.shrunk = {call for _, caller in rewrite.removed for call in caller.ancestry()}

    def run(self) -> None:
        self._settle()
        if self.edited & self.trace.stateful:
            raise GraftError("a module that changes its own attributes would get new code")
        forwards: list[tuple[Call, fx.Graph, dict[str, Any], tuple[str, ...]]] = []
        for call in self.trace.calls:
            if call in self.edited and call not in self.inlined and self._is_live(call):
                graph, baked, parameters = self._slice(call)
                forwards.append((call, graph, baked, parameters))
        for path, module in self.rewrite.modules.items():
            parent, _, name = path.rpartition(".")
            setattr(fetch(self.target, parent) if parent else self.target, name, module)
        for call, graph, baked, parameters in forwards:
            owner = fetch(self.target, call.path) if call.path else self.target
            self._attach(owner, graph, baked, parameters, call)
        # Where other arguments may come, the code as it was must go on running.
        self._prune([call for call, *_ in forwards if knows_only_tensors(call)])

    def _is_live(self, call: Call) -> bool:
        return call.parent is None or bool(self.inside[call])

    # -- Which calls stay calls -----------------------------------------------------------------

    def _settle(self) -> None:
        """Inline the calls that cannot stay calls; whoever inlines has new code too."""
        for call in reversed(self.trace.calls):
            if call.parent is None:
                continue
            if not self._is_live(call):
                if self._vanished(call):
                    self.edited.add(call.parent)
                continue
            if (
                call in self.rewrite.inlined
                or (call in self.edited and not self._can_change_alone(call))
                or self._leaks(call)
            ):
                self.inlined.add(call)
            if call in self.inlined:
                self.edited.add(call.parent)
                self.edited.discard(call)

    def _vanished(self, call: Call) -> bool:
        """Whether a call had nodes of its own and has none any more."""
        return call in self.shrunk or call in self.edited

    def _can_change_alone(self, call: Call) -> bool:
        if self.times[id(call.module)] > 1:
            return False
        return all(
            self._relative(str(node.target), call) is not None
            for node in self.inside[call]
            if node.op in ("call_module", "get_attr")
        )

    def _leaks(self, call: Call) -> bool:
        """Whether nodes inside are read outside by another way than the call's result."""
        inner = set(self.inside[call])
        results = {self.rewrite.current(node) for node in nodes_in(call.result)}
        arguments = {self.rewrite.current(node) for node in nodes_in(call.arguments)}
        for node in inner:
            if node in results or node.op == "get_attr":
                continue
            if any(user not in inner for user in node.users):
                return True
        visible = inner | arguments
        reads = {argument for node in inner for argument in node.all_input_nodes}
        return any(node not in visible and node.op != "get_attr" for node in results | reads)

    # -- Slicing --------------------------------------------------------------------------------

    def _slice(self, owner: Call) -> tuple[fx.Graph, dict[str, Any], tuple[str, ...]]:
        """The graph of one module's own forward, its children called and not inlined."""
        graph = fx.Graph()
        values: dict[fx.Node, fx.Node] = {}
        baked: dict[str, Any] = {}
        parameters: list[str] = []
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
            self._unpack(graph, argument, placeholder, values)
        emitted: set[Call] = set()

        def read(node: fx.Node) -> fx.Node:
            node = self.rewrite.current(node)
            if node not in values:
                if node.op != "get_attr":
                    raise GraftError(f"{node} is not visible in {owner.path or 'the model'}")
                values[node] = graph.get_attr(self._named(str(node.target), owner))
            return values[node]

        for node in self.inside[owner]:
            call = self._called_from(owner, self.trace.caller[node])
            if call is not None:
                if call not in emitted:
                    emitted.add(call)
                    self._emit_call(graph, call, owner, read, values)
                continue
            if node.op in ("placeholder", "output", "get_attr"):
                continue
            copied = graph.node_copy(node, read)
            if node.op == "call_module":
                copied.target = self._named(str(node.target), owner)
            values[node] = copied
        graph.output(written_into(graph, owner.result, read))
        return graph, baked, tuple(parameters)

    def _called_from(self, owner: Call, caller: Call) -> Call | None:
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
        path = self._named(call.path, owner)
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

    def _relative(self, path: str, owner: Call) -> str | None:
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

    def _named(self, path: str, owner: Call) -> str:
        relative = self._relative(path, owner)
        if relative is None:
            raise GraftError(f"{path} is not below {owner.path}")
        return relative

    def _attach(
        self,
        owner: nn.Module,
        graph: fx.Graph,
        baked: dict[str, Any],
        parameters: tuple[str, ...],
        call: Call,
    ) -> None:
        graph.lint()
        if isinstance(owner, fx.GraphModule):
            owner.graph = graph
            return
        code = graph.python_code("self")
        names = {name: value for name, value in code.globals.items() if name in code.src}
        taken = list(inspect.signature(owner.forward).parameters.values())
        positional = tuple(p.name for p in taken[: len(parameters)]) == parameters and all(
            p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for p in taken[: len(parameters)]
        )
        outlines = {name: outline(call.arguments[name]) for name in parameters}
        tensors = frozenset(call.tensors)
        positional = positional and not tensors and not call.lengths
        outlines = {name: was for name, was in outlines.items() if was is not None}
        positional = positional and not outlines
        forward = FusedForward(
            owner, code.src, names, parameters, positional, baked, outlines, tensors, call.lengths
        )
        owner.forward = forward

    # -- What died must go ----------------------------------------------------------------------

    def _prune(self, owners: list[Call]) -> None:
        """Remove the modules and tensors that only replaced code reached."""
        kept = self._kept()
        removed: dict[Call, list[tuple[str, Call]]] = {}
        for path, caller in [*self.rewrite.removed, *self._vanished_calls()]:
            for call in caller.ancestry():
                removed.setdefault(call, []).append((path, caller))
        for owner in owners:
            root = fetch(self.target, owner.path)
            protected = names_of_public_methods(type(root)) | self.rewrite.protected.get(
                owner, set()
            )
            prefix = f"{owner.path}." if owner.path else ""
            for path, caller in removed.get(owner, ()):
                if not path.startswith(prefix):
                    continue
                relative = path[len(prefix) :].split(".")
                between = _below(caller, owner)
                if relative[0] not in protected and not any(map(self._stays, between)):
                    _remove(root, relative, kept)

    def _stays(self, call: Call) -> bool:
        return call not in self.inlined and self._is_live(call)

    def _kept(self) -> set[int]:
        """Identities of all modules and tensors that the edited graph still uses."""
        kept: set[int] = set()
        paths = {str(node.target) for node in self.nodes if node.op in ("call_module", "get_attr")}
        for path in paths | set(self.rewrite.modules):
            used = fetch(self.target, path)
            kept.add(id(used))
            if isinstance(used, nn.Module):
                parts = (*used.modules(), *used.parameters(), *used.buffers())
                kept.update(id(part) for part in parts)
        return kept

    def _vanished_calls(self) -> list[tuple[str, Call]]:
        """The calls of which nothing is left."""
        live = {id(call.module) for call in self.trace.calls if self._is_live(call)}
        return [
            (call.path, call.parent)
            for call in reversed(self.trace.calls)
            if call.parent is not None and id(call.module) not in live and self._vanished(call)
        ]


def _remove(root: nn.Module, path: list[str], kept: set[int]) -> None:
    """Remove a module or a tensor, and the containers that have nothing left to hold."""
    parents = [root]
    for name in path[:-1]:
        child = parents[-1]._modules.get(name)
        if child is None:
            return
        parents.append(child)
    holder, name = parents[-1], path[-1]
    for tensors in (holder._parameters, holder._buffers):
        if tensors.get(name) is not None and id(tensors[name]) not in kept:
            tensors[name] = None
            return
    module = holder._modules.get(name)
    if module is None:
        return
    parts = (*module.modules(), *module.parameters(), *module.buffers())
    if any(id(part) in kept for part in parts):
        return
    if isinstance(holder, nn.Sequential):
        holder._modules[name] = nn.Identity().eval()
        return
    holder._modules[name] = None
    # A list that holds nothing any more goes too.
    for parent, inner, at in zip(parents[-2::-1], parents[:0:-1], path[-2::-1], strict=True):
        empty = all(child is None for child in inner.children())
        if not isinstance(inner, nn.ModuleList | nn.ModuleDict) or not empty:
            return
        parent._modules[at] = None


def _below(call: Call, owner: Call) -> list[Call]:
    calls = []
    for current in call.ancestry():
        if current is owner:
            break
        calls.append(current)
    return calls
