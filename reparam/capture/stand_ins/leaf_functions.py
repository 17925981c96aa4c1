"""Plain functions that stay one node of the graph: they have a rule, or cannot be traced.

A function such as ``pad_same`` computes with sizes that tracing does not know. It is called in the
new code as it was in the old.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import fx, nn

from reparam.capture.reading import Reach
from reparam.capture.structures import proxies_in


@dataclass(frozen=True)
class LeafFunction:
    """A function and where a model's code finds it.

    Args:
        function: The function.
        name: The name of the variable that holds it.
        home: The variables that it is among: those of a Python module, or of code made at run time.
    """

    function: Callable[..., Any]
    name: str
    home: dict[str, Any]


def found_in_modules(functions: Iterable[Callable[..., Any]]) -> Iterator[LeafFunction]:
    """Where Python modules hold some functions under their own names."""
    named = [(getattr(function, "__name__", ""), function) for function in functions]
    for home in list(sys.modules.values()):
        variables = getattr(home, "__dict__", {})
        for name, function in named:
            if variables.get(name) is function:
                yield LeafFunction(function, name, variables)


def failing_function(error: BaseException) -> LeafFunction | None:
    """The deepest plain function in which an exception was raised, if a graph can call it."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for caller, frame in reversed(list(itertools.pairwise(frames))):
        name = frame.f_code.co_name
        here = sys.modules.get(str(caller.f_globals.get("__name__")))
        named = [caller.f_globals.get(used) for used in caller.f_code.co_names]
        places = [(vars(home), name) for home in (here, *named) if isinstance(home, ModuleType)]
        # Fused code has it under another name.
        places.extend((caller.f_globals, used) for used in caller.f_code.co_names)
        for home, used in places:
            function = home.get(used)
            if isinstance(function, FunctionType) and _can_be_a_leaf(function, frame.f_code):
                return LeafFunction(function, used, home)
    return None


def _can_be_a_leaf(function: FunctionType, code: CodeType) -> bool:
    """Whether a function has this code, is a model's own and can be named by new code."""
    home = str(function.__module__)
    return (
        inspect.unwrap(function).__code__ is code
        and not home.startswith(("torch.", "reparam."))
        and getattr(sys.modules.get(home), function.__name__, None) is function
    )


@contextmanager
def as_leaves(functions: list[LeafFunction], tracer: fx.Tracer) -> Iterator[None]:
    """Record calls of some functions as nodes."""
    for leaf in functions:
        leaf.home[leaf.name] = _recorded(leaf.function, tracer)
    try:
        yield
    finally:
        for leaf in functions:
            leaf.home[leaf.name] = leaf.function


def _recorded(function: Callable[..., Any], tracer: fx.Tracer) -> Any:
    @functools.wraps(function)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        mine = any(proxy.tracer is tracer for proxy in proxies_in((args, kwargs)))
        if not mine or not _only_looks_at_modules(function, args, kwargs):
            return function(*args, **kwargs)
        return tracer.create_proxy("call_function", function, args, kwargs)

    return recorded


def _only_looks_at_modules(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Whether a function reads nothing but plain attributes of the modules it is given."""
    modules = [value for value in (*args, *kwargs.values()) if isinstance(value, nn.Module)]
    if not modules:
        return True
    reach = Reach()
    reach.read(inspect.unwrap(function), args, kwargs)
    parts = {id(part) for module in modules for part in module.modules()}
    return not parts & (reach.opened | reach.called.keys())
