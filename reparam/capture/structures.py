"""Arguments and results of calls: nested containers with the nodes of a graph inside."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import fx


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
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(without_proxies, value))
    if isinstance(value, tuple | list):
        return type(value)(map(without_proxies, value))
    if isinstance(value, dict):
        entries = {key: without_proxies(entry) for key, entry in value.items()}
        return entries if type(value) is dict else Built(type(value), entries)
    if isinstance(value, slice):
        return slice(*map(without_proxies, (value.start, value.stop, value.step)))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: without_proxies(getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
        return Built(type(value), fields) if any(True for _ in nodes_in(fields)) else value
    return value


def nodes_in(value: Any) -> Iterator[fx.Node]:
    """All nodes in a structure."""
    return _found_in(value, fx.Node)


def proxies_in(value: Any) -> Iterator[fx.Proxy]:
    """All proxies in a structure."""
    return _found_in(value, fx.Proxy)


def _found_in(value: Any, kind: type) -> Iterator[Any]:
    if isinstance(value, kind):
        yield value
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from _found_in(entry, kind)
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _found_in(entry, kind)
    elif isinstance(value, Built):
        yield from _found_in(value.entries, kind)
    elif isinstance(value, slice):
        yield from _found_in((value.start, value.stop, value.step), kind)


def written_into(graph: fx.Graph, value: Any, read: Callable[[fx.Node], fx.Node]) -> Any:
    """A structure as an argument of a node in another graph.

    Args:
        graph: The other graph.
        value: The structure.
        read: What stands for a node in the other graph.
    """
    if isinstance(value, fx.Node):
        return read(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(written_into(graph, entry, read) for entry in value))
    if isinstance(value, tuple | list):
        return type(value)([written_into(graph, entry, read) for entry in value])
    if isinstance(value, dict):
        return {key: written_into(graph, entry, read) for key, entry in value.items()}
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return slice(*(written_into(graph, part, read) for part in parts))
    if isinstance(value, Built):
        entries = written_into(graph, value.entries, read)
        if dataclasses.is_dataclass(value.kind):
            return graph.call_function(value.kind, (), entries)
        return graph.call_function(value.kind, ([list(entry) for entry in entries.items()],))
    return value


def filled(value: Any, read: Callable[[fx.Node], Any]) -> Any:
    """A structure with values in place of nodes.

    Args:
        value: The structure.
        read: The value of a node.
    """
    if isinstance(value, fx.Node):
        return read(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(filled(entry, read) for entry in value))
    if isinstance(value, tuple | list):
        return (tuple if isinstance(value, tuple) else list)(filled(v, read) for v in value)
    if isinstance(value, dict):
        return {key: filled(entry, read) for key, entry in value.items()}
    if isinstance(value, slice):
        return slice(*(filled(part, read) for part in (value.start, value.stop, value.step)))
    if isinstance(value, Built):
        entries = filled(value.entries, read)
        return value.kind(entries) if value.by_key else value.kind(**entries)
    return value


def can_be_built(value: Any) -> bool:
    """Whether `written_into` knows how to make a container of this class again."""
    if isinstance(value, Built):
        known = value.kind is OrderedDict or (
            dataclasses.is_dataclass(value.kind)
            and all(field.init for field in dataclasses.fields(value.kind))
        )
        return known and can_be_built(value.entries)
    if isinstance(value, dict):
        return all(map(can_be_built, value.values()))
    return all(map(can_be_built, value)) if isinstance(value, tuple | list) else True


def outline(value: Any) -> Any:
    """The lengths and keys of a structure, without what it holds."""
    if isinstance(value, tuple | list):
        return [outline(entry) for entry in value]
    if isinstance(value, dict):
        return {key: outline(entry) for key, entry in value.items()}
    if isinstance(value, Built):
        return outline(value.entries) if value.by_key else value.kind.__qualname__
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value).__qualname__
    return None


def reached(
    start: Iterable[fx.Node], neighbours: Callable[[fx.Node], Iterable[fx.Node]]
) -> set[fx.Node]:
    """All nodes that can be reached from some, these included.

    Args:
        start: Where to begin.
        neighbours: The nodes next to a node.
    """
    seen: set[fx.Node] = set()
    pending = [*start]
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending.extend(neighbours(node))
    return seen
