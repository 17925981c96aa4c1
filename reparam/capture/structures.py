"""Arguments and results of calls: nested containers with the nodes of a graph inside."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import fx

from reparam.modules import is_dataclass

_PLAIN = (tuple, list, dict, slice)


@dataclasses.dataclass(frozen=True, eq=False)
class Built:
    """A container of a class of its own, such as a dataclass or an ordered dictionary.

    Args:
        kind: The class.
        entries: What it holds, by field or by key.
    """

    kind: type
    entries: dict[Any, Any]

    @property
    def by_key(self) -> bool:
        """Whether its entries are read as ``value[key]``, not as attributes."""
        return not dataclasses.is_dataclass(self.kind)


def without_proxies(value: Any) -> Any:
    """A structure with nodes in place of proxies."""
    if isinstance(value, fx.Proxy):
        return value.node
    if isinstance(value, dict) and type(value) is not dict:
        return Built(type(value), {key: without_proxies(entry) for key, entry in value.items()})
    if isinstance(value, _PLAIN):
        return _rebuilt(value, without_proxies)
    if is_dataclass(value):
        fields = {
            field.name: without_proxies(getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
        return Built(type(value), fields) if any(True for _ in nodes_in(fields)) else value
    return value


def _rebuilt(value: Any, change: Callable[[Any], Any]) -> Any:
    """A plain container with other entries; anything else as it is."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(change, value))
    if isinstance(value, tuple | list):
        return type(value)(map(change, value))
    if isinstance(value, dict):
        return {key: change(entry) for key, entry in value.items()}
    if isinstance(value, slice):
        return slice(*map(change, (value.start, value.stop, value.step)))
    return value


def _entries(value: Any) -> Iterable[Any]:
    """What a container holds; nothing if it is none."""
    if isinstance(value, tuple | list):
        return value
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, Built):
        return value.entries.values()
    return (value.start, value.stop, value.step) if isinstance(value, slice) else ()


def nodes_in(value: Any) -> Iterator[fx.Node]:
    """All nodes in a structure."""
    return _found_in(value, fx.Node)


def proxies_in(value: Any) -> Iterator[fx.Proxy]:
    """All proxies in a structure."""
    return _found_in(value, fx.Proxy)


def _found_in(value: Any, kind: type) -> Iterator[Any]:
    if isinstance(value, kind):
        yield value
        return
    for entry in _entries(value):
        yield from _found_in(entry, kind)


def written_into(graph: fx.Graph, value: Any, read: Callable[[fx.Node], fx.Node]) -> Any:
    """A structure as an argument of a node in another graph."""
    if isinstance(value, fx.Node):
        return read(value)
    if isinstance(value, Built):
        entries = written_into(graph, value.entries, read)
        if dataclasses.is_dataclass(value.kind):
            return graph.call_function(value.kind, (), entries)
        return graph.call_function(value.kind, ([list(entry) for entry in entries.items()],))
    return _rebuilt(value, lambda entry: written_into(graph, entry, read))


def filled(value: Any, read: Callable[[fx.Node], Any]) -> Any:
    """A structure with values in place of nodes."""
    if isinstance(value, fx.Node):
        return read(value)
    if isinstance(value, Built):
        entries = filled(value.entries, read)
        return value.kind(entries) if value.by_key else value.kind(**entries)
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        # A graph's own lists may not be changed; what a function is given may.
        return (tuple if isinstance(value, tuple) else list)(filled(v, read) for v in value)
    return _rebuilt(value, lambda entry: filled(entry, read))


def can_be_built(value: Any) -> bool:
    """Whether `written_into` knows how to make a container of this class again."""
    if isinstance(value, Built) and value.kind is not OrderedDict:
        fields = dataclasses.fields(value.kind) if dataclasses.is_dataclass(value.kind) else ()
        if value.by_key or not all(field.init for field in fields):
            return False
    return all(map(can_be_built, _entries(value)))


@dataclasses.dataclass(frozen=True)
class _Constant:
    """A constant inside a structure: code may ask for it."""

    value: Any


def outline(value: Any) -> Any:
    """What code can tell of a structure of nodes: lengths, keys, classes, and constants in it."""
    if isinstance(value, fx.Node):
        return None
    if isinstance(value, Built):
        entries = outline(value.entries)
        return entries if value.by_key else (value.kind.__qualname__, entries)
    if isinstance(value, tuple | list):
        return [outline(entry) for entry in value]
    if isinstance(value, dict):
        return {key: outline(entry) for key, entry in value.items()}
    return _Constant(value)


def has_outline(value: Any, traced: Any) -> bool:
    """Whether a structure of values is like the nodes that an outline was taken of."""
    if isinstance(traced, _Constant):
        return is_same_constant(value, traced.value)
    if isinstance(traced, list):
        alike = isinstance(value, tuple | list) and len(value) == len(traced)
        return alike and all(map(has_outline, value, traced))
    if isinstance(traced, dict):
        alike = isinstance(value, dict) and value.keys() == traced.keys()
        return alike and all(has_outline(value[key], traced[key]) for key in traced)
    if isinstance(traced, tuple):
        kind, fields = traced
        alike = type(value).__qualname__ == kind
        if isinstance(value, dict):  # which leaves out the fields that are None
            alike = alike and value.keys() == fields.keys()
        return alike and all(has_outline(getattr(value, name), fields[name]) for name in fields)
    return value is not None and not isinstance(value, _PLAIN) and not is_dataclass(value)


def is_same_constant(now: Any, traced: Any) -> bool:
    """Whether a constant is what was traced, as far as that can be compared."""
    if now is traced:
        return True
    if type(now) is not type(traced):  # 1 equals True, and code may tell them apart
        return False
    if type(traced) is dict:
        same = now.keys() == traced.keys()
        return same and all(is_same_constant(now[key], traced[key]) for key in traced)
    if isinstance(traced, tuple | list | slice):
        entries, others = [*_entries(now)], [*_entries(traced)]
        return len(entries) == len(others) and all(map(is_same_constant, entries, others))
    if is_dataclass(traced):
        names = [field.name for field in dataclasses.fields(traced)]
        return all(is_same_constant(getattr(now, name), getattr(traced, name)) for name in names)
    return isinstance(traced, (int, float, str, torch.dtype, torch.device)) and bool(now == traced)


def reached(
    start: Iterable[fx.Node], neighbours: Callable[[fx.Node], Iterable[fx.Node]]
) -> set[fx.Node]:
    """All nodes that can be reached from some, these included."""
    seen: set[fx.Node] = set()
    pending = [*start]
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending.extend(neighbours(node))
    return seen
