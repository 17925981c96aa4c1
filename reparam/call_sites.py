"""Which methods may call a module at all: told from how their code calls, not from values."""

from __future__ import annotations

import ast
import builtins
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from types import BuiltinFunctionType, FunctionType

from torch import nn
from torch.utils.checkpoint import checkpoint

from reparam.source import definition


@dataclass(frozen=True)
class _Sites:
    """How one function calls.

    Args:
        called: Names of the attributes that it calls.
        read: Names of all attributes that it reads.
        anything: Whether it calls something that has no such name.
    """

    called: frozenset[str]
    read: frozenset[str]
    anything: bool


class CallSites:
    """Knows by which names a model may give modules, and which functions its classes define.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._held = {"forward", "__call__"}
        self._functions: dict[str, set[FunctionType]] = defaultdict(set)
        kinds: set[type] = set()
        for module in model.modules():
            kinds.update(type(module).__mro__)
            self._held.update(module._modules.keys())
            self._held.update(name for name, value in vars(module).items() if callable(value))
        for kind in kinds - {object, nn.Module}:
            for name, value in vars(kind).items():
                if isinstance(value, nn.Module | property | cached_property):
                    self._held.add(name)  # a property may give a module
                function = value.fget if isinstance(value, property) else value
                function = getattr(function, "__wrapped__", getattr(function, "__func__", function))
                if isinstance(function, FunctionType):
                    self._functions[name].add(function)

    def may_call(self, function: FunctionType) -> bool:
        """Whether a function, or a method or property that it uses, may call a module.

        Args:
            function: The function.
        """
        pending, seen = [function], {function}
        while pending:
            sites = _sites(pending.pop())
            if sites.anything or not self._held.isdisjoint(sites.called):
                return True
            for name in sites.read & self._functions.keys():
                pending.extend(self._functions[name] - seen)
                seen |= self._functions[name]
        return False


@cache
def _sites(function: FunctionType) -> _Sites:
    code = definition(function)
    if code is None:
        return _Sites(frozenset(), frozenset(), anything=True)
    nodes = list(ast.walk(code))
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    bound = {*_bound(nodes), *function.__code__.co_freevars} - {"__class__"}
    attributes = [call for call in calls if isinstance(call, ast.Attribute)]
    others = [call for call in calls if not isinstance(call, ast.Attribute)]
    return _Sites(
        called=frozenset(call.attr for call in attributes),
        read=frozenset(node.attr for node in nodes if isinstance(node, ast.Attribute)),
        anything=not all(_is_plain(call, function, bound) for call in others),
    )


def _bound(nodes: list[ast.AST]) -> Iterator[str]:
    """The names that a function gives to values."""
    for node in nodes:
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield name
            case (
                ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.ClassDef(name=name)
            ):
                yield name


def _is_plain(call: ast.expr, function: FunctionType, bound: set[str]) -> bool:
    """Whether what is called is a function or a class under a global or a builtin name."""
    if not isinstance(call, ast.Name) or call.id in bound:
        return False
    value = function.__globals__.get(call.id, getattr(builtins, call.id, None))
    plain = value is None or isinstance(value, type | FunctionType | BuiltinFunctionType)
    return plain and value is not checkpoint
