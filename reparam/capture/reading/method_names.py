"""Which attributes of a module its methods use, as their compiled code tells."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from types import FunctionType

from torch import nn

from reparam.capture.reading.source import codes_in, definition, own_methods


def methods_naming(module: nn.Module, names: set[str]) -> dict[str, set[str]]:
    """The methods of a module's class that use some of the names, and which of them."""
    used = {method: names & _names(code) for method, code in own_methods(type(module)).items()}
    return {method: some for method, some in used.items() if some}


def methods_running(module: nn.Module, methods: Iterable[str]) -> set[str]:
    """Some methods of a module's class, and those that call them, directly or not."""
    found = set(methods)
    while True:
        more = methods_naming(module, found).keys() - found
        if not more:
            return found
        found |= more


def runs_as_one(module: nn.Module, method: str, names: Sequence[str]) -> bool:
    """Whether a method calls attributes one on the result of the other, and does nothing else.

    Such as ``x = self.bn(self.conv(x))``, in one statement or in several that follow each other.
    """
    code = definition(own_methods(type(module))[method])
    if code is None:
        return False
    used = [node for node in ast.walk(code) if isinstance(node, ast.Attribute)]
    once = sorted(node.attr for node in used if node.attr in names) == sorted(names)
    return once and _is_chain(code.body, list(names))


def _is_chain(block: list[ast.stmt], names: list[str]) -> bool:
    """Whether statements call attributes in turn, perhaps in ``with`` or in one of two branches."""
    using = [index for index, statement in enumerate(block) if _uses(statement, names)]
    match [block[index] for index in using]:
        case []:
            return False
        case [ast.If(body=body, orelse=orelse)]:
            return _is_chain(body, names) or _is_chain(orelse, names)
        case [ast.With(body=body)]:
            return _is_chain(body, names)
    follow_each_other = using == list(range(using[0], using[-1] + 1))
    return follow_each_other and _called_by(block, using) == names


def _called_by(block: list[ast.stmt], using: list[int]) -> list[str] | None:
    """What statements call in turn, each on the result of the one before; None if they do not."""
    called: list[str] = []
    before: str | None = None
    result: str | None
    for at in using:
        match block[at]:
            case ast.Return(value=ast.expr() as call):
                result = None
            case (
                ast.Assign(targets=[ast.Name(id=result)], value=ast.expr() as call)
                | ast.AnnAssign(target=ast.Name(id=result), value=ast.expr() as call)
            ):
                pass
            case _:
                return None
        attributes, operand = _called_in_turn(call)
        if before is not None:
            # It is overwritten by what is made of it, or never read again.
            dies = result == before or not _reads(block[at + 1 :], before)
            if operand != before or not dies:
                return None
        called += attributes
        before = result
    return called


def _reads(block: list[ast.stmt], name: str) -> bool:
    nodes = (node for statement in block for node in ast.walk(statement))
    return any(isinstance(node, ast.Name) and node.id == name for node in nodes)


def _called_in_turn(call: ast.expr) -> tuple[list[str], str | None]:
    """The attributes in ``self.b(self.a(x))``, the inner one first, and the name of ``x``."""
    match call:
        case ast.Call(func=ast.Attribute(value=ast.Name(), attr=name), args=[inner], keywords=[]):
            names, operand = _called_in_turn(inner)
            return [*names, name], operand
        case ast.Name(id=operand):
            return [], operand
    return [], None


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
            used = _names(methods[method])
            yield method, used
            called = (used & methods.keys()) - seen
            seen |= called
            pending.extend(called)


def _names(function: FunctionType) -> set[str]:
    """All names that a function uses, nested functions and comprehensions included."""
    return {name for code in codes_in(function.__code__) for name in code.co_names}
