"""The names that ``getattr(self, name)`` may read, where code itself spells them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from reparam.capture.reading.source import Definition

_PASSING_ON = {"tuple", "list", "reversed", "sorted", "set", "iter"}


@dataclass(frozen=True)
class Spelling:
    """Names: those that are spelled out, and the beginnings of those that are made of parts."""

    whole: frozenset[str] = frozenset()
    beginnings: frozenset[str] = frozenset()

    def __or__(self, other: Spelling) -> Spelling:
        return Spelling(self.whole | other.whole, self.beginnings | other.beginnings)

    def may_be(self, name: str) -> bool:
        """Whether a name is among them."""
        return name in self.whole or name.startswith(tuple(self.beginnings))


def spelled(
    name: ast.expr, code: Definition, seen: frozenset[str] = frozenset()
) -> Spelling | None:
    """What an expression may be in some code, if it is made of text in that code alone."""
    match name:
        case ast.Constant(value=str(text)):
            return Spelling(whole=frozenset({text}))
        case (
            ast.JoinedStr(values=[ast.Constant(value=str(text)), *_])
            | ast.BinOp(left=ast.Constant(value=str(text)), op=ast.Add())
        ):
            return Spelling(beginnings=frozenset({text}))
        case ast.Tuple(elts=several) | ast.List(elts=several) | ast.Set(elts=several):
            return _all(several, code, seen)
        case ast.IfExp(body=body, orelse=orelse):
            return _all([body, orelse], code, seen)
        case ast.Subscript(value=value) | ast.Call(func=ast.Name(id="enumerate"), args=[value, *_]):
            return spelled(value, code, seen)
        case ast.Call(func=ast.Name(id=function), args=[value]) if function in _PASSING_ON:
            return spelled(value, code, seen)
        case ast.Name(id=variable) if variable in seen:
            return Spelling()
        case ast.Name(id=variable):
            values = list(_bindings(variable, code))
            known = [value for value in values if value is not None]
            if not values or len(known) < len(values):
                return None
            return _all(known, code, seen | {variable})
    return None


def _all(several: list[ast.expr], code: Definition, seen: frozenset[str]) -> Spelling | None:
    result = Spelling()
    for value in several:
        names = spelled(value, code, seen)
        if names is None:
            return None
        result |= names
    return result


def _bindings(variable: str, code: Definition) -> Iterator[ast.expr | None]:
    """The expressions whose value, or an entry of it, a variable holds; None for anything else."""
    sources: dict[ast.expr, ast.expr] = {}
    for node in ast.walk(code):
        match node:
            case (
                ast.Assign(targets=[target], value=value)
                | ast.For(target=target, iter=value)
                | ast.comprehension(target=target, iter=value)
            ):
                numbered = isinstance(value, ast.Call) and ast.unparse(value.func) == "enumerate"
                if numbered and isinstance(target, ast.Tuple):
                    target = target.elts[-1]
                sources[target] = value
    for node in ast.walk(code):
        names = (getattr(node, field, None) for field in ("arg", "name", "asname", "rest"))
        if variable in names:
            yield None
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == variable:
            yield sources.get(node)
