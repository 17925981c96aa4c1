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


def methods(kind: Any) -> dict[str, FunctionType]:
    """The functions that a class and its bases define, without those that every module has.

    Args:
        kind: The class.
    """
    return _methods(kind)


@cache
def _methods(kind: Any) -> dict[str, FunctionType]:
    return functions_of(base for base in kind.__mro__ if base not in (object, nn.Module))


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
    _attribute_of_class.cache_clear()
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


def static_attribute(holder: Any, name: str, after: type | None = None, default: Any = None) -> Any:
    """An attribute of a class or of a Python module, with no descriptor called.

    Args:
        holder: The class or the Python module.
        name: The attribute's name.
        after: Leave out the classes up to this one, as ``super`` does.
        default: What is returned if there is none.
    """
    if isinstance(holder, type):
        return _attribute_of_class(holder, name, after, default)
    return vars(holder).get(name, default)


@cache
def _attribute_of_class(kind: Any, name: str, after: Any, default: Any) -> Any:
    return next((vars(base)[name] for base in classes(kind, after) if name in vars(base)), default)


def classes(kind: type, after: type | None = None) -> tuple[type, ...]:
    """A class and its bases, in the order in which they are searched.

    Args:
        kind: The class.
        after: Leave out the classes up to this one, as ``super`` does.
    """
    order = kind.__mro__
    return order[order.index(after) + 1 :] if after in order else order


@cache
def parameters_of(function: FunctionType) -> tuple[inspect.Parameter, ...]:
    """The parameters of a function.

    Args:
        function: The function.
    """
    return tuple(inspect.signature(function).parameters.values())
