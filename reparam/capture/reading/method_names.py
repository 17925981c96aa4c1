"""Which attributes of a module its methods use, as their compiled code tells."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterable, Iterator
from functools import cache, cached_property
from itertools import pairwise
from types import FunctionType

from torch import nn

from reparam.capture.reading.source import (
    codes_in,
    is_torchs,
    layers,
    own_methods,
    public_methods,
    static_attribute,
)

_ANY_NUMBER = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS
"""The flags of code that takes any number of arguments."""


def methods_naming(module: nn.Module, names: set[str]) -> dict[str, set[str]]:
    """The methods of a module's class that use some of the names, and which of them."""
    kind = type(module)
    used = {method: names & _names(kind, method) for method in own_methods(kind)}
    return {method: some for method, some in used.items() if some}


def methods_running(module: nn.Module, methods: Iterable[str]) -> set[str]:
    """Some methods of a module's class, and those that call them, directly or not."""
    found = set(methods)
    while True:
        more = methods_naming(module, found).keys() - found
        if not more:
            return found
        found |= more


def names_of_public_methods(kind: type) -> set[str]:
    """Names that public methods called from forward use: a user may call these methods too."""
    return {
        name
        for method, used in _run_by_forward(kind)
        if method != "forward" and not method.startswith("_")
        for name in used
    }


@cache
def names_computed_with(kind: type) -> frozenset[str]:
    """Names that public methods besides forward use which get something and return something.

    What only initialises, converts or reads parameters takes nothing, or returns nothing.
    """
    computing = [name for name, function in public_methods(kind).items() if _computes(function)]
    return frozenset(names_used_by(kind, computing, without=["forward"]))


def _computes(function: FunctionType) -> bool:
    """Whether a method gets more than its object, and returns more than that or nothing."""
    code = function.__code__
    getting = code.co_argcount + code.co_kwonlyargcount > 1 or bool(code.co_flags & _ANY_NUMBER)
    steps = list(dis.get_instructions(code))
    returned = [before.argval for before, step in pairwise(steps) if step.opname == "RETURN_VALUE"]
    return getting and any(value not in (None, *code.co_varnames[:1]) for value in returned)


def names_forward_uses(kind: type) -> set[str]:
    """Names that a class's forward uses, and the methods of the class that it calls."""
    return {name for _, used in _run_by_forward(kind) for name in used}


def methods_run_by(kind: type, starting: Iterable[str], without: Iterable[str]) -> set[str]:
    """Some methods, and those that they call directly or not, but for some."""
    return {method for method, _ in _run_by(kind, starting, without)}


def names_of_properties(kind: type) -> set[str]:
    """Names that the properties of a class use."""
    values = [value for base in kind.__mro__ for value in vars(base).values()]
    getters = [value for value in values if isinstance(value, property | cached_property)]
    functions = [f for getter in getters for f in layers(getter) if not is_torchs(f)]
    return set().union(*map(names_in, functions))


def names_used_by(kind: type, starting: Iterable[str], without: Iterable[str]) -> set[str]:
    """Names that some methods use, and the methods that they call but for some."""
    return {name for _, used in _run_by(kind, starting, without) for name in used}


def _run_by_forward(kind: type) -> Iterator[tuple[str, set[str]]]:
    """Forward, and the methods that it calls directly or not, with the names that each uses."""
    return _run_by(kind, ["forward"])


def _run_by(
    kind: type, starting: Iterable[str], without: Iterable[str] = ()
) -> Iterator[tuple[str, set[str]]]:
    """Some methods, and those that they call directly or not, with the names that each uses."""
    methods, pending = own_methods(kind), [*starting]
    seen = {*pending, *without}
    while pending:
        method = pending.pop()
        if method in methods:
            used = _names(kind, method)
            yield method, used
            called = (used & methods.keys()) - seen
            seen |= called
            pending.extend(called)


def _names(kind: type, method: str) -> set[str]:
    """All names that a method uses: its wrappers, nested functions and comprehensions included."""
    functions = layers(static_attribute(kind, method))
    return set().union(*(names_in(function) for function in functions if not is_torchs(function)))


def names_in(function: FunctionType) -> set[str]:
    """All names that a function uses, nested functions and comprehensions included."""
    return {name for code in codes_in(function.__code__) for name in code.co_names}
