"""What an expression in a module's code may be: modules, and what can be called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from reparam.capture.reading.source import codes_in, methods


@dataclass(frozen=True)
class Value:
    """The Python objects that an expression may be: modules, and what can be called.

    It may always be something else besides, such as a tensor, which does not matter.

    Args:
        itself: What it may be.
        inside: What a container that it may be holds, however deep.
    """

    itself: frozenset[Any] = frozenset()
    inside: frozenset[Any] = frozenset()

    def __or__(self, other: Value) -> Value:
        if self is NOTHING or other is NOTHING:
            return self if other is NOTHING else other
        return Value(self.itself | other.itself, self.inside | other.inside)

    @property
    def all(self) -> frozenset[Any]:
        """What it may be or hold."""
        return self.itself | self.inside

    @property
    def modules(self) -> frozenset[nn.Module]:
        """The modules that it is, holds or carries along."""
        return frozenset(module for thing in self.all for module in carried(thing))


NOTHING = Value()


def union(values: Iterable[Value]) -> Value:
    """What one of several expressions may be."""
    result = NOTHING
    for value in values:
        result |= value
    return result


def container(values: Iterable[Value]) -> Value:
    """A container of what expressions may be."""
    inside = union(values).all
    return Value(inside=inside) if inside else NOTHING


def refer_to(thing: Any) -> Value:
    """A Python object as an expression's value."""
    if isinstance(thing, _THINGS):
        return Value(frozenset([thing]))
    if is_registry(thing):
        return Value(frozenset([MethodType(type(thing).__getitem__, thing)]))
    inside = frozenset(entry for entry in entries_of(thing) if isinstance(entry, _THINGS))
    return Value(inside=inside) if inside else NOTHING


def is_registry(thing: Any) -> bool:
    """Whether an object is a mapping of a class of its own that hands out nothing but functions.

    What its methods return is read, so they must make no functions. Its ``__getitem__`` stands for
    it, since a mapping cannot be hashed.
    """
    if not isinstance(thing, Mapping) or isinstance(thing, dict):
        return False
    attributes = [getattr(holder, "__dict__", {}) for holder in (thing, *type(thing).__mro__)]
    held = [value for each in attributes for value in each.values() if isinstance(value, dict)]
    entries = list(entries_of(held))
    return (
        bool(entries)
        and all(isinstance(entry, FunctionType) for entry in entries)
        and not any(map(_makes_functions, methods(type(thing)).values()))
    )


def _makes_functions(function: FunctionType) -> bool:
    used = map(function.__globals__.get, function.__code__.co_names)
    nested = len(list(codes_in(function.__code__))) > 1
    makers = FunctionType, ModuleType, partial, type
    return function.__module__ != "collections.abc" and (
        nested or any(isinstance(value, makers) for value in used)
    )


def is_method(thing: Any) -> bool:
    """Whether an object is a method of a module or of a registry."""
    if not isinstance(thing, MethodType):
        return False
    return isinstance(thing.__self__, nn.Module) or is_registry(thing.__self__)


_THINGS = (
    nn.Module, FunctionType, MethodType, BuiltinFunctionType, partial, type, ModuleType
)  # fmt: skip


def entries_of(thing: Any) -> Iterator[Any]:
    """What Python's own containers hold, at any depth."""
    pending, seen = [thing], set[int]()
    while pending:
        holder = pending.pop()
        if not isinstance(holder, dict | list | tuple | set):
            yield holder
        elif id(holder) not in seen:
            seen.add(id(holder))
            pending.extend(holder.values() if isinstance(holder, dict) else holder)


def carried(thing: Any) -> frozenset[nn.Module]:
    """The modules that an object is, or that it carries along."""
    if isinstance(thing, nn.Module):
        return frozenset([thing])
    if isinstance(thing, type | ModuleType | BuiltinFunctionType | Tensor):
        return frozenset()
    if isinstance(thing, FunctionType):
        held = [*map(contents, thing.__closure__ or ()), *(thing.__defaults__ or ())]
    elif isinstance(thing, partial):
        held = [thing.func, *thing.args, *thing.keywords.values()]
    elif isinstance(thing, MethodType):
        held = [thing.__self__]
    else:
        held = list(getattr(thing, "__dict__", {}).values())
    return frozenset(entry for entry in entries_of(held) if isinstance(entry, nn.Module))


def contents(cell: Any) -> Any:
    """What a variable of an enclosing function holds; None if nothing yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
