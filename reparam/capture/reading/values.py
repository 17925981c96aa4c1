"""What an expression in a module's code may refer to, as far as it leads to modules."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

from torch import Tensor, nn

Values: TypeAlias = frozenset[Any]
"""All that one expression may be: modules themselves, and the kinds of things below."""

NOTHING: Values = frozenset()


@dataclass(frozen=True)
class Several:
    """A container with modules in it.

    Args:
        entries: What it may hold.
        nested: Whether it may also hold containers of the same.
    """

    entries: Values
    nested: bool = False


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


@dataclass(frozen=True)
class Registry:
    """A mapping from names to functions, of a class of its own.

    Args:
        kind: Its class.
        functions: What it may give back: as `Outside`.
    """

    kind: type
    functions: Values

    def hands_out(self, name: str) -> bool:
        """Whether a method returns no function but those that it holds or was given.

        Args:
            name: The method's name.
        """
        seen: set[str] = set()
        pending = [name, "__getitem__"]
        while pending:
            function = inspect.getattr_static(self.kind, name := pending.pop(), None)
            if name in seen or getattr(function, "__module__", "") == "collections.abc":
                continue
            seen.add(name)
            if not isinstance(function, FunctionType):
                return False
            code = function.__code__
            used = [function.__globals__.get(other) for other in code.co_names]
            makes = any(isinstance(value, CodeType) for value in code.co_consts)
            if makes or any(isinstance(value, _MAKERS) for value in used):
                return False
            pending.extend(
                other
                for other in code.co_names
                if not isinstance(inspect.getattr_static(self.kind, other, {}), dict)
            )
        return True


_MAKERS = FunctionType, ModuleType, partial, type
"""What code may use to make a function."""


def union(several: Iterable[Values]) -> Values:
    """All that one of several expressions may be."""
    return NOTHING.union(*several)


def container(entries: Values) -> Values:
    """A container of what an expression may be."""
    entries = modules_in(entries)
    deep = frozenset(v for v in entries if isinstance(v, Several) or _depth(v) > _DEPTH)
    flat = (entries - deep) | union(map(_flat, deep))
    return frozenset([Several(flat, bool(deep))]) if flat else NOTHING


def row(places: tuple[Values, ...]) -> Values:
    """A tuple of what expressions may be."""
    places = tuple(map(modules_in, places))
    value = Row(places)
    if _depth(value) > _DEPTH:
        return container(union(places))
    return frozenset([value]) if any(places) else NOTHING


_DEPTH = 3  # of containers in containers that are told apart: what recurses would have no end


def _depth(value: Any) -> int:
    if isinstance(value, Row):
        return 1 + max((_depth(v) for place in value.places for v in place), default=0)
    if isinstance(value, Several):
        return 1 + max(map(_depth, value.entries), default=0)
    return 0


def _flat(value: Any) -> Values:
    """The modules in containers of containers."""
    if isinstance(value, Row):
        return union(map(_flat, union(value.places)))
    if isinstance(value, Several):
        return union(map(_flat, value.entries))
    return frozenset([value])


def modules_in(values: Values) -> Values:
    """What leads to a module."""
    return frozenset(v for v in values if not isinstance(v, Known | Outside | Registry))


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
    if isinstance(value, list | tuple | dict | set) and not value:
        return frozenset([Known(())])
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
    if isinstance(value, Mapping):
        return _registry(value)
    return frozenset([Outside(value)]) if callable(value) or _is_module(value) else NOTHING


def _registry(mapping: Mapping[Any, Any]) -> Values:
    """A mapping that holds nothing but functions, in dictionaries of its own or of its class."""
    places = [vars(mapping), *map(vars, type(mapping).__mro__)]
    own = [value for place in places for value in place.values() if isinstance(value, dict)]
    functions = [function for entries in own for function in entries.values()]
    if not functions or not all(isinstance(function, FunctionType) for function in functions):
        return NOTHING
    return frozenset([Registry(type(mapping), frozenset(map(Outside, functions)))])


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
