"""Mappings of a class of their own from names to functions: what their methods hand out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

_MAKERS = FunctionType, ModuleType, partial, type  # what code may use to make a function


def is_registry(thing: Any) -> bool:
    """Whether an object is a mapping that holds nothing but functions."""
    return isinstance(thing, Mapping) and not isinstance(thing, dict) and bool(functions_in(thing))


def functions_in(registry: Mapping[Any, Any]) -> frozenset[Any]:
    """The functions in dictionaries of a mapping or of its class; none if it holds anything else.

    Args:
        registry: The mapping.
    """
    places = [vars(registry), *map(vars, type(registry).__mro__)]
    own = [value for place in places for value in place.values() if isinstance(value, dict)]
    entries = [entry for held in own for entry in held.values()]
    return frozenset(entries if all(isinstance(e, FunctionType) for e in entries) else ())


def handed_out(thing: Any, name: str) -> frozenset[Any] | None:
    """The functions that a method of a registry returns, if no others but those it was given.

    Args:
        thing: What stands for the registry: a method of it.
        name: The method's name.
    """
    registry: Any = thing.__self__ if isinstance(thing, MethodType) else None
    if not is_registry(registry):
        return None
    kind = type(registry)
    seen: set[str] = set()
    pending = [name, "__getitem__"]
    while pending:
        function = inspect.getattr_static(kind, name := pending.pop(), None)
        if name in seen or getattr(function, "__module__", "") == "collections.abc":
            continue
        seen.add(name)
        if not isinstance(function, FunctionType):
            return None
        code = function.__code__
        used = [function.__globals__.get(other) for other in code.co_names]
        makes = any(isinstance(value, CodeType) for value in code.co_consts)
        if makes or any(isinstance(value, _MAKERS) for value in used):
            return None
        pending.extend(
            other
            for other in code.co_names
            if not isinstance(inspect.getattr_static(kind, other, {}), dict)
        )
    return functions_in(registry)
