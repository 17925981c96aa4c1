"""What a model keeps of earlier calls: caches that eval mode fills, a mask made when first needed.

Code that reads such a tensor goes on running as it is written: it may find another one some day. So
does code that changes what the model holds. But its operators may become others in their places if
it does the same whatever it finds, which a second run, on what the first one left behind, shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from torch import Tensor, fx, nn

from reparam.capture.reading import attributes_set, functions_below
from reparam.capture.stand_ins.proxies import ConstantProxy
from reparam.capture.structures import proxies_in, without_proxies
from reparam.capture.trace import Call
from reparam.errors import UntraceableError
from reparam.modules import Watch, join


class Kept:
    """What a node runs whose value is a tensor that the model keeps, but not under a path."""

    __name__ = "kept"

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __call__(self) -> Tensor:
        """The tensor itself."""
        return self.tensor


class KeptProxy(ConstantProxy):
    """A tensor that the model keeps: a node of its own in each call whose code reads it.

    A plain attribute has a path, and is a constant like a buffer.
    """

    def __init__(self, kept: KeptValues, tracer: fx.Tracer, value: Tensor) -> None:
        self._kept = kept
        self._target = kept.paths_of_attributes.get(id(value)) or Kept(value)
        self._value = value
        none_yet: Any = None
        super().__init__(none_yet, tracer, value)

    @property
    def node(self) -> fx.Node:
        """The node of the call whose code runs."""
        kept: KeptValues = vars(self)["_kept"]
        return kept.node(vars(self)["_target"], vars(self)["_value"])

    @node.setter
    def node(self, node: fx.Node | None) -> None:
        if node is not None:
            raise UntraceableError("its forward writes to what it keeps of earlier calls")

    def handed_on(self) -> fx.Proxy:
        """The same value for another call, as it is where it was read."""
        target, value = vars(self)["_target"], vars(self)["_value"]
        if isinstance(target, str):
            kept: KeptValues = vars(self)["_kept"]
            return ConstantProxy(self.node, kept.tracer, value)
        return self.tracer.proxy(self.node)


class KeptValues:
    """The tensors that a model keeps, while it is traced.

    Attributes:
        readers: The calls whose own code reads one.
        paths: Those of them that are attributes.
        paths_of_attributes: The paths of tensors that are plain attributes to which no forward
            assigns, by identity.
    """

    def __init__(self, tracer: Any) -> None:
        self.tracer = tracer
        self.readers: set[Call] = set()
        self.paths: set[str] = set()
        self._nodes: dict[tuple[Call | None, Kept | str], fx.Node] = {}
        plain = _plain_attributes(tracer.model)
        self._attributes = _those_that_change(plain, tracer.model)
        self.paths_of_attributes = {
            id(value): join(path, name)
            for (path, name), value in plain.items()
            if id(value) not in self._attributes
        }
        self._stands_in = False

    def read(self, tensor: Tensor) -> None:
        """Note that the code that runs reads a tensor which may be an attribute that changes."""
        path = self._attributes.get(id(tensor))
        if path is not None:
            self.paths.add(path)
            self.readers.update(self.tracer.stack[-1:])

    def node(self, target: Kept | str, value: Tensor) -> fx.Node:
        """The node of a tensor in the call whose code runs."""
        call = self.tracer.stack[-1] if self.tracer.stack else None
        if (call, target) not in self._nodes:
            node: fx.Node
            if isinstance(target, str):
                node = self.tracer.create_node("get_attr", target, (), {})
                self.tracer.constants.read(node, value)
            else:
                node = self.tracer.create_node("call_function", target, (), {})
                node.meta["tensor"] = True
                self.readers.update([call] if call else [])
            self._nodes[call, target] = node
        return self._nodes[call, target]

    def handed_on(self, value: Any) -> Any:
        """What one call hands to another: the value itself, as it was where it was read."""
        if not self._stands_in:
            return value
        if isinstance(value, KeptProxy):
            return value.handed_on()
        if isinstance(value, tuple) and not hasattr(value, "_fields"):
            return tuple(map(self.handed_on, value))
        if any(isinstance(proxy, KeptProxy) for proxy in proxies_in(value)):
            raise UntraceableError("its forward hands on a container that it keeps")
        return value

    def in_containers(self, watch: Watch) -> list[tuple[Any, Any, Tensor]]:
        """The containers in which the model keeps tensors, with their keys, and these."""
        model = self.tracer.model
        registered = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        return [
            (entries, key, value)
            for entries in watch.containers()
            for key, value in _items(entries)
            if isinstance(value, Tensor) and id(value) not in registered
        ]

    def in_attributes(self) -> list[tuple[dict[str, Any], str, Tensor]]:
        """The plain attributes that are tensors and that no forward changes, as they lie."""
        return [
            (vars(module), name, value)
            for module in self.tracer.model.modules()
            for name, value in vars(module).items()
            if isinstance(value, Tensor) and id(value) in self.paths_of_attributes
        ]

    @contextmanager
    def standing_in(self, watch: Watch) -> Iterator[None]:
        """Let code find proxies where the model keeps tensors that are not registered."""
        places = [
            (entries, key, value, KeptProxy(self, self.tracer, value))
            for entries, key, value in (*self.in_containers(watch), *self.in_attributes())
        ]
        self._stands_in = bool(places)
        for entries, key, _, proxy in places:
            entries[key] = proxy
        try:
            yield
        finally:
            for entries, key, value, proxy in places:
                if any(now is proxy for at, now in _items(entries) if at == key):
                    entries[key] = value


def _items(entries: Any) -> list[tuple[Any, Any]]:
    return list(entries.items() if isinstance(entries, dict) else enumerate(entries))


def _plain_attributes(model: nn.Module) -> dict[tuple[str, str], Tensor]:
    """The tensors that are plain attributes, by the path of their module and their name."""
    return {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
    }


def _those_that_change(plain: Mapping[tuple[str, str], Tensor], model: nn.Module) -> dict[int, str]:
    """Those plain attributes to which code of some forward assigns: their paths by identity."""
    if not plain:
        return {}
    assigned = {name for module in model.modules() for name in _assigned_by(module)}
    return {
        id(value): join(path, name) for (path, name), value in plain.items() if name in assigned
    }


def _assigned_by(module: nn.Module) -> Iterator[str]:
    """The names of the attributes that a module's forward, or a property of it, assigns to."""
    getters = [module.forward]
    for kind in type(module).__mro__[:-1]:
        for name, value in vars(kind).items():
            if isinstance(value, cached_property):
                yield name
            elif isinstance(value, property) and value.fget is not None:
                getters.append(value.fget)
    for getter in getters:
        for function in functions_below(module, getter):
            yield from attributes_set(function.__code__)


def settled_by(tracer: Any, again: Callable[[], Any], result: Any) -> set[int]:
    """Run a forward again, on what its first run left behind, and forget that run.

    Returns:
        The modules, by identity, for which all stays as it is from then on; none, if the second
        run did anything else than the first.
    """
    first, calls = list(tracer.graph.nodes), len(tracer.calls)
    failed, drew = tracer.failed, len(tracer.random_modules)
    try:
        with tracer.doubts.forgotten(), Watch(tracer.model) as watch:
            repeated = again()
    except Exception:  # whatever the user's forward raises on what it left behind
        repeated = None
    second = list(tracer.graph.nodes)[len(first) :]
    alike = repeated is not None and _runs_alike(first, second, (result, repeated), tracer.caller)
    for node in reversed(second):
        tracer.graph.erase_node(node)
        tracer.caller.pop(node, None)
    tracer.kept.readers.difference_update(tracer.calls[calls:])
    for call in tracer.calls[calls:]:
        tracer.put_into_objects.pop(call, None)
    del tracer.calls[calls:]
    tracer.failed = failed
    del tracer.random_modules[drew:]
    if not alike:
        return set()
    return {id(module) for module in tracer.model.modules()} - {*map(id, watch.changed)}


def _runs_alike(
    first: Sequence[fx.Node],
    second: Sequence[fx.Node],
    results: tuple[Any, Any],
    caller: Mapping[fx.Node, Call],
) -> bool:
    """Whether two runs of a forward did the same to its inputs, in the same modules.

    The second may have found the constants that the first one made.
    """
    same = {node: node for node in first}
    inputs = {node for node in first if node.op == "placeholder"}
    depend: set[fx.Node] = set(inputs)
    for node in (*first, *second):
        if not depend.isdisjoint(node.all_input_nodes):
            depend.add(node)
    constants = {_key(node, same, caller): node for node in first if node not in depend}
    expected = [node for node in first if node in depend - inputs]
    found = [node for node in second if node in depend]
    if len(expected) != len(found):
        return False
    pairs = iter(expected)
    for node in second:
        other = next(pairs) if node in depend else constants.get(_key(node, same, caller))
        if other is None or _key(node, same, caller) != _key(other, same, caller):
            return False
        same[node] = other
    before, after = map(without_proxies, results)
    return repr(before) == repr(fx.map_arg(after, same.__getitem__))


def _key(node: fx.Node, same: Mapping[fx.Node, fx.Node], caller: Mapping[fx.Node, Call]) -> Any:
    """What a node does, in which module, in terms of the nodes of the first run."""
    arguments = fx.map_arg((node.args, node.kwargs), same.__getitem__)
    path = caller[node].path if node in caller else ""
    target = node.target if isinstance(node.target, str) else id(node.target)
    return node.op, target, repr(arguments), path
