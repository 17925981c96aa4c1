"""Which attributes of a module its methods use, as their compiled code tells."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn


def methods_naming(module: nn.Module, names: set[str]) -> dict[str, set[str]]:
    """The methods of a module's class that use some of the names, and which of them.

    Args:
        module: The module.
        names: Names of its attributes.
    """
    found: dict[str, set[str]] = {}
    for method, function in _methods(type(module)).items():
        used = names & set(_names(function.__code__))
        if used:
            found[method] = used
    return found


def names_of_public_methods(kind: type) -> set[str]:
    """Names that public methods called from forward use: a user may call these methods too."""
    methods = _methods(kind)
    names: set[str] = set()
    pending, seen = ["forward"], {"forward"}
    while pending:
        method = pending.pop()
        if method not in methods:
            continue
        used = set(_names(methods[method].__code__))
        if method != "forward" and not method.startswith("_"):
            names |= used
        called = (used & methods.keys()) - seen
        seen |= called
        pending.extend(called)
    return names


def names_forward_uses(kind: type) -> set[str]:
    """Names that a class's forward uses, and the methods of the class that it calls."""
    methods = _methods(kind)
    names: set[str] = set()
    pending = ["forward"]
    while pending:
        method = pending.pop()
        if method in methods:
            used = set(_names(methods[method].__code__))
            pending.extend((used & methods.keys()) - names)
            names |= used
    return names


def _methods(kind: Any) -> dict[str, FunctionType]:
    """The functions that a class and its bases below ``nn.Module`` define."""
    found: dict[str, FunctionType] = {}
    for base in reversed(kind.__mro__):
        if base is object or base.__module__.startswith("torch.nn.modules"):
            continue
        for name, value in vars(base).items():
            function = inspect.unwrap(value) if callable(value) else None
            if isinstance(function, FunctionType) and name != "__init__":
                found[name] = function
    return found


def _names(code: CodeType) -> Iterator[str]:
    """All names that code uses, nested functions and comprehensions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
