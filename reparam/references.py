"""What an expression in a module's code may refer to, as far as it leads to modules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

from torch import Tensor, nn

Values: TypeAlias = frozenset[Any]
"""All that one expression may be: modules themselves, and the kinds of things below."""

NOTHING: Values = frozenset()


@dataclass(frozen=True)
class Several:
    """A container, or a container of containers, with modules in it."""

    entries: Values


@dataclass(frozen=True)
class Row:
    """A tuple, such as ``enumerate`` and ``zip`` give, place by place."""

    places: tuple[Values, ...]


@dataclass(frozen=True)
class Carrier:
    """A function, or an object of some class, that holds modules."""

    entries: Values


@dataclass(frozen=True)
class Method:
    """A method of a module or of a container.

    Args:
        owner: The module, or what stands for the container.
        name: The method's name.
        after: The class after which it is searched, as ``super`` does.
    """

    owner: Any
    name: str
    after: type | None = None


@dataclass(frozen=True)
class Super:
    """What ``super()`` is in a method of a class."""

    owner: nn.Module
    after: type


@dataclass(frozen=True)
class TensorsOf:
    """The parameters and buffers of one module."""

    owner: nn.Module


@dataclass(frozen=True)
class Known:
    """A plain constant."""

    value: Any


@dataclass(frozen=True)
class Outside:
    """A function, a class or a Python module that is no part of a model."""

    value: Any


def union(several: Iterable[Values]) -> Values:
    """All that one of several expressions may be."""
    return NOTHING.union(*several)


def container(entries: Values) -> Values:
    """A container of what an expression may be."""
    flat = union(
        value.entries if isinstance(value, Several) else frozenset([value])
        for value in modules_in(entries)
    )
    rows = [value for value in flat if isinstance(value, Row)]
    if any(isinstance(v, Several) for value in rows for place in value.places for v in place):
        flat -= frozenset(rows)
        flat |= union(modules_in_row(value) for value in rows)
    return frozenset([Several(flat)]) if flat else NOTHING


def row(places: tuple[Values, ...]) -> Values:
    """A tuple of what expressions may be; a row within a row is no longer told place by place."""
    flat = tuple(
        union(container(frozenset([v])) if isinstance(v, Row) else frozenset([v]) for v in place)
        for place in map(modules_in, places)
    )
    return frozenset([Row(flat)]) if any(flat) else NOTHING


def modules_in(values: Values) -> Values:
    """What leads to a module."""
    return frozenset(v for v in values if not isinstance(v, Known | Outside))


def modules_in_row(value: Row) -> Values:
    """What any place of a row may be, containers opened."""
    return union(
        v.entries if isinstance(v, Several) else frozenset([v])
        for place in value.places
        for v in place
    )


def constant(values: Values) -> Known | None:
    """The one constant that an expression is; None if it may be anything else."""
    if len(values) != 1:
        return None
    value = next(iter(values))
    return value if isinstance(value, Known) else None


def refer_to(value: Any, owner: nn.Module | None = None) -> Values:
    """A Python object as an expression's value.

    Args:
        value: The object.
        owner: The module whose attribute it is.
    """
    if value is None or isinstance(value, bool | int | str):
        return frozenset([Known(value)])
    if isinstance(value, Tensor):
        return NOTHING if owner is None else frozenset([TensorsOf(owner)])
    if isinstance(value, nn.Module):
        return frozenset([value])
    if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
        return frozenset([Method(value.__self__, value.__name__)])
    if isinstance(value, dict):
        return container(union(refer_to(entry, owner) for entry in value.values()))
    if isinstance(value, list | tuple | set):
        return container(union(refer_to(entry, owner) for entry in value))
    held = _held_by(value)
    if held:
        return frozenset([Carrier(held)])
    return frozenset([Outside(value)]) if callable(value) or _is_module(value) else NOTHING


def _held_by(value: Any) -> Values:
    """The modules that a function or an object of some class carries along."""
    if isinstance(value, FunctionType):
        inside = [contents(cell) for cell in value.__closure__ or ()]
    elif isinstance(value, partial):
        inside = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, MethodType):
        inside = [value.__self__]
    elif isinstance(value, type | ModuleType | BuiltinFunctionType):
        inside = []
    else:
        inside = list(getattr(value, "__dict__", {}).values())
    return frozenset(entry for entry in inside if isinstance(entry, nn.Module))


def contents(cell: Any) -> Any:
    """What a variable of an enclosing function holds; None if nothing yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _is_module(value: Any) -> bool:
    return isinstance(value, ModuleType)
