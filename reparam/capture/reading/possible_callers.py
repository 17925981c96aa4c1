"""Which methods may call a module at all: told from how their code calls, not from values."""

from __future__ import annotations

import ast
import builtins
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import nn

from reparam.capture.reading.source import (
    Definition,
    codes_in,
    definition,
    is_torchs,
    layers,
)


@dataclass(frozen=True)
class _Sites:
    """How one function calls.

    Args:
        called: Names of the attributes that it calls.
        read: Names of all attributes that it reads, but for the following.
        of_self: Chains of attributes that it reads of ``self``, such as ``self.norm.weight``.
        functions: Functions outside classes that it calls.
        anything: Whether it calls something that has no such name.
    """

    called: frozenset[str]
    read: frozenset[str]
    of_self: frozenset[tuple[str, ...]]
    functions: frozenset[FunctionType]
    anything: bool


class CallSites:
    """Knows under which names a model holds modules, and which functions its classes define."""

    def __init__(self, model: nn.Module) -> None:
        self._held = {"forward", "__call__", "_call_impl", *_CALL_WHAT_THEY_GET}
        self._functions: dict[str, set[FunctionType]] = defaultdict(set)
        self._wrapped: set[FunctionType] = set()
        kinds: set[type] = set()
        for module in model.modules():
            kinds.update(type(module).__mro__)
            self._held.update(module._modules.keys())
            self._held.update(name for name, value in vars(module).items() if callable(value))
        for kind in kinds - {object, nn.Module}:
            for name, value in vars(kind).items():
                if isinstance(value, nn.Module | property | cached_property):
                    self._held.add(name)
                functions = layers(value)
                if not all(map(is_torchs, functions[:-1])):
                    self._wrapped.add(functions[-1])
                function = value.fget if isinstance(value, property) else value
                function = getattr(function, "__wrapped__", getattr(function, "__func__", function))
                if isinstance(function, FunctionType):
                    self._functions[name].add(function)

    def may_call(self, function: FunctionType, owner: nn.Module | None = None) -> bool:
        """Whether a function, or a method or property that it uses, may call a module.

        Args:
            function: The function.
            owner: The module whose method it is, if that is certain.
        """
        pending, seen = [function], {function}
        while pending:
            function = pending.pop()
            sites = _sites(function)
            if (
                sites.anything
                or function in self._wrapped
                or not self._held.isdisjoint(sites.called)
            ):
                return True
            read = sites.read.union(*(_unsettled(chain, owner) for chain in sites.of_self))
            owner = None
            named = (self._functions[name] for name in read & self._functions.keys())
            found = sites.functions.union(*named) - seen
            pending.extend(found)
            seen |= found
        return False


_CALL_WHAT_THEY_GET = set(
    "checkpoint checkpoint_sequential functional_call data_parallel parallel_apply compile trace "
    "script vmap jvp vjp jacrev jacfwd grad map filter reduce accumulate starmap call".split()
)
"""Names of functions that call one of their arguments."""


@cache
def _sites(function: FunctionType) -> _Sites:
    code = definition(function)
    if code is None:
        return _Sites(frozenset(), frozenset(), frozenset(), frozenset(), anything=True)
    nodes = list(ast.walk(code))
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    bound = _bound_names(nodes, function)
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    chains = {node: chain for node in attributes if (chain := _chain_of(node, code))}
    called = {call.attr for call in calls if isinstance(call, ast.Attribute)}
    given = {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
    plain = [_plain(call, function, bound) for call in calls if not isinstance(call, ast.Attribute)]
    return _Sites(
        frozenset(called),
        frozenset(node.attr for node in attributes if node not in chains),
        frozenset(chains.values()),
        frozenset(value for value in plain if isinstance(value, FunctionType)),
        anything=None in plain or not called.isdisjoint(given),
    )


def _bound_names(nodes: Iterable[ast.AST], function: FunctionType) -> set[str]:
    """The names that code gives to values of its own."""
    bound = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for inner in codes_in(function.__code__):
        bound.update(inner.co_varnames, inner.co_cellvars, inner.co_freevars)
    return bound


def _chain_of(attribute: ast.expr, code: Definition) -> tuple[str, ...]:
    """The names in ``self.norm.weight``, of the first argument of a function; else none."""
    names: list[str] = []
    while isinstance(attribute, ast.Attribute):
        names.insert(0, attribute.attr)
        attribute = attribute.value
    parameters = [parameter.arg for parameter in code.args.args[:1]]
    is_of_self = isinstance(attribute, ast.Name) and attribute.id in parameters
    return tuple(names) if is_of_self else ()


def _unsettled(chain: tuple[str, ...], owner: nn.Module | None) -> tuple[str, ...]:
    """The names of a chain that may be properties: of which it is not certain what they are."""
    for at, name in enumerate(chain):
        if owner is not None and (name in owner._parameters or name in owner._buffers):
            return chain[at + 1 :]
        inner = None if owner is None else owner._modules.get(name)
        if inner is None:
            return chain[at:]
        owner = inner
    return ()


def _plain(call: ast.expr, function: FunctionType, bound: set[str]) -> Any:
    """What is called, if it is a function or a class under a name that everybody sees."""
    if not isinstance(call, ast.Name) or call.id in bound:
        return None
    value = function.__globals__.get(call.id, getattr(builtins, call.id, None))
    if getattr(value, "__name__", None) in _CALL_WHAT_THEY_GET:
        return None
    return value if isinstance(value, type | FunctionType | BuiltinFunctionType) else None
