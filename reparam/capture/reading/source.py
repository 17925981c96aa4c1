"""The functions that a class of modules defines, and the code of a function."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable
from functools import cache
from types import CodeType, FunctionType
from typing import Any, TypeAlias

from torch import nn

Definition: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


def methods(kind: Any, after: type | None = None) -> dict[str, FunctionType]:
    """The functions that a class and its bases define, without those that every module has.

    Args:
        kind: The class.
        after: Leave out the classes up to this one, as ``super`` does.
    """
    return _methods(kind, after)


@cache
def _methods(kind: Any, after: Any) -> dict[str, FunctionType]:
    order = kind.__mro__
    if after in order:
        order = order[order.index(after) + 1 :]
    return functions_of(base for base in order if base not in (object, nn.Module))


def own_methods(kind: Any) -> dict[str, FunctionType]:
    """The functions that a class and its bases define, without those of torch's own modules.

    Args:
        kind: The class.
    """
    return functions_of(
        base
        for base in kind.__mro__
        if base is not object and not str(base.__module__).startswith("torch.nn.modules")
    )


def public_methods(kind: Any) -> list[str]:
    """Names of the methods that a user may call, those of torch's own classes left out.

    Args:
        kind: The class.
    """
    bases = (base for base in kind.__mro__ if not str(base.__module__).startswith("torch."))
    found = functions_of(base for base in bases if base is not object)
    return [name for name in found if name != "forward" and not name.startswith("_")]


def functions_of(kinds: Iterable[type]) -> dict[str, FunctionType]:
    """The functions that classes define, by name; an earlier class goes before a later one.

    Args:
        kinds: The classes.
    """
    found: dict[str, FunctionType] = {}
    for base in reversed(list(kinds)):
        for name, value in vars(base).items():
            function = inspect.unwrap(value) if callable(value) else None
            if isinstance(function, FunctionType) and name != "__init__":
                found[name] = function
    return found


def forget_classes() -> None:
    """Look at every class anew: somebody may have changed one since."""
    _methods.cache_clear()
    _code_below.cache_clear()
    parameters_of.cache_clear()


def code_below(module: nn.Module, forward: Any) -> tuple[CodeType, ...]:
    """The code of a forward, and of the methods and plain functions that it may run.

    Args:
        module: The module.
        forward: Its forward.
    """
    held = tuple(value for value in vars(module).values() if isinstance(value, FunctionType))
    kind: Any = type(module)
    return _code_below(kind, getattr(forward, "__func__", forward), held)


@cache
def _code_below(kind: Any, forward: Any, held: tuple[FunctionType, ...]) -> tuple[CodeType, ...]:
    pending: list[Any] = [*map(inspect.unwrap, (forward, *held))]
    found: dict[CodeType, None] = {}
    own = methods(kind)
    while pending:
        function = pending.pop()
        if (
            not isinstance(function, FunctionType)
            or function.__code__ in found
            or str(function.__module__).partition(".")[0] == "torch"
        ):
            continue
        found[function.__code__] = None
        for name in function.__code__.co_names:
            for value in (own.get(name), function.__globals__.get(name)):
                if isinstance(value, FunctionType):
                    pending.append(inspect.unwrap(value))
    return tuple(found)


@cache
def definition(function: FunctionType) -> Definition | None:
    """The syntax tree of a function; None where its source is not at hand.

    Args:
        function: The function.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, Definition) and node.name == function.__name__:
            return node
    return None


@cache
def repeats(code: Definition) -> bool:
    """Whether code may run more than once in one call, so that it reads above what it sets below.

    Args:
        code: The syntax tree of a function.
    """
    return any(isinstance(node, _REPEATING) for node in ast.walk(code) if node is not code)


_REPEATING = (
    ast.For, ast.AsyncFor, ast.While, ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda,
    ast.GeneratorExp, ast.NamedExpr,
)  # fmt: skip


def static_attribute(holder: Any, name: str) -> Any:
    """An attribute of a class or of a Python module, with no descriptor called; None if none.

    Args:
        holder: The class or the Python module.
        name: The attribute's name.
    """
    for place in holder.__mro__ if isinstance(holder, type) else (holder,):
        if name in vars(place):
            return vars(place)[name]
    return inspect.getattr_static(holder, name, None)


@cache
def parameters_of(function: FunctionType) -> tuple[inspect.Parameter, ...]:
    """The parameters of a function.

    Args:
        function: The function.
    """
    return tuple(inspect.signature(function).parameters.values())
