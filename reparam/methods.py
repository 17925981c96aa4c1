"""Which attributes of a module its methods use, as their compiled code tells."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from types import CodeType

from torch import nn

from reparam.source import definition, own_methods


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


def runs_as_one(module: nn.Module, method: str, names: set[str]) -> bool:
    """Whether a method uses all of some attributes one right after the other, or none of them.

    Args:
        module: The module.
        method: The method's name.
        names: Names of the module's attributes.
    """
    code = definition(own_methods(type(module))[method])
    return code is not None and _together(code.body, names)


def _together(block: list[ast.stmt], names: set[str]) -> bool:
    using = [index for index, statement in enumerate(block) if _uses(statement, names)]
    match [block[index] for index in using]:
        case [ast.If(test=test, body=body, orelse=orelse)]:
            inner = [one for one in (body, orelse) if any(_uses(part, names) for part in one)]
            return not _uses(test, names) and len(inner) == 1 and _together(inner[0], names)
        case [ast.With(body=body)]:
            return _together(body, names)
        case statements:
            branches = (isinstance(node, _BRANCHES) for one in statements for node in ast.walk(one))
            return using == list(range(using[0], using[-1] + 1)) and not any(branches)


def _uses(code: ast.AST, names: set[str]) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr in names for node in ast.walk(code))


_BRANCHES = (
    *(ast.If, ast.IfExp, ast.For, ast.While, ast.Try, ast.With, ast.BoolOp, ast.Match, ast.Lambda),
    *(ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.FunctionDef),
)


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
