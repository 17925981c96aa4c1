"""Which attributes of a module its methods use, as their compiled code tells."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from types import CodeType

from torch import nn

from reparam.capture.reading.source import definition, own_methods


def methods_naming(module: nn.Module, names: set[str]) -> dict[str, set[str]]:
    """The methods of a module's class that use some of the names, and which of them.

    Args:
        module: The module.
        names: Names of its attributes.
    """
    found: dict[str, set[str]] = {}
    for method, function in own_methods(type(module)).items():
        used = names & set(_names(function.__code__))
        if used:
            found[method] = used
    return found


def methods_running(module: nn.Module, methods: Iterable[str]) -> set[str]:
    """Some methods of a module's class, and those that call them, directly or not.

    Args:
        module: The module.
        methods: Names of its methods.
    """
    found = set(methods)
    while True:
        more = methods_naming(module, found).keys() - found
        if not more:
            return found
        found |= more


def runs_as_one(module: nn.Module, method: str, names: Sequence[str]) -> bool:
    """Whether a method calls attributes one on the result of the other, and does nothing else.

    Such as ``x = self.bn(self.conv(x))``, in one statement or in several that follow each other.

    Args:
        module: The module.
        method: The method's name.
        names: Names of the module's attributes, in the order in which they must be called.
    """
    code = definition(own_methods(type(module))[method])
    if code is None:
        return False
    used = [node for node in ast.walk(code) if isinstance(node, ast.Attribute)]
    once = sorted(node.attr for node in used if node.attr in names) == sorted(names)
    return once and _is_chain(code.body, list(names))


def _is_chain(block: list[ast.stmt], names: list[str]) -> bool:
    using = [index for index, statement in enumerate(block) if _uses(statement, names)]
    match [block[index] for index in using]:
        case [ast.If(test=test, body=body, orelse=orelse)]:
            inner = [one for one in (body, orelse) if any(_uses(part, names) for part in one)]
            return not _uses(test, names) and len(inner) == 1 and _is_chain(inner[0], names)
        case [ast.With(body=body)]:
            return _is_chain(body, names)
    if using != list(range(using[0], using[-1] + 1)):
        return False
    called: list[str] = []
    before: str | None = None
    for at in using:
        result, call = _result(block[at])
        if call is None:
            return False
        names_here, read = _called_in_turn(call)
        # What the statement before made is overwritten by what is made of it, or never read again.
        kept = result != before and before is not None and _reads(block[at + 1 :], before)
        if before is not None and (read != before or kept):
            return False
        called += names_here
        before = result
    return called == names


def _reads(block: list[ast.stmt], name: str) -> bool:
    """Whether statements use a variable."""
    nodes = (node for statement in block for node in ast.walk(statement))
    return any(isinstance(node, ast.Name) and node.id == name for node in nodes)


def _result(statement: ast.stmt) -> tuple[str | None, ast.expr | None]:
    """The name that a statement gives to the result of an expression, and the expression."""
    match statement:
        case ast.Return(value=expression):
            return None, expression
        case ast.Assign(targets=[ast.Name(id=name)], value=expression):
            return name, expression
        case ast.AnnAssign(target=ast.Name(id=name), value=expression):
            return name, expression
    return None, None


def _called_in_turn(call: ast.expr) -> tuple[list[str], str | None]:
    """The attributes in ``self.b(self.a(x))``, the inner one first, and the name of ``x``."""
    names: list[str] = []
    while True:
        match call:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(), attr=name), args=[inner], keywords=[]
            ):
                names.insert(0, name)
                call = inner
            case ast.Name(id=read):
                return names, read
            case _:
                return names, None


def _uses(code: ast.AST, names: Sequence[str]) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr in names for node in ast.walk(code))


def names_of_public_methods(kind: type) -> set[str]:
    """Names that public methods called from forward use: a user may call these methods too."""
    return {
        name
        for method, used in _run_by_forward(kind)
        if method != "forward" and not method.startswith("_")
        for name in used
    }


def names_forward_uses(kind: type) -> set[str]:
    """Names that a class's forward uses, and the methods of the class that it calls."""
    return {name for _, used in _run_by_forward(kind) for name in used}


def _run_by_forward(kind: type) -> Iterator[tuple[str, set[str]]]:
    """Forward, and the methods that it calls directly or not, with the names that each uses."""
    methods = own_methods(kind)
    pending, seen = ["forward"], {"forward"}
    while pending:
        method = pending.pop()
        if method in methods:
            used = set(_names(methods[method].__code__))
            yield method, used
            called = (used & methods.keys()) - seen
            seen |= called
            pending.extend(called)


def _names(code: CodeType) -> Iterator[str]:
    """All names that code uses, nested functions and comprehensions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
