"""Pieces of a function's code that are one step for whoever does not look into them.

Such a piece only computes new values of the local variables that it reads, or checks them, and
runs no part of the module. It is named by where it stands.
"""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any, TypeAlias

from torch import Tensor

from reparam.capture.reading.source import definition

Span: TypeAlias = tuple[int, int, int, int]
"""Where a piece of code stands in its function: the first line and the last, and the columns."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A piece of a function's code.

    Args:
        node: Its syntax tree: a statement, or an expression.
        results: The variables that it gives values to and that other code reads.
        before: The variables that surely have a value where it stands.
        unsure: Those that it reads, and that have one or not, as other code decides.
    """

    node: ast.stmt | ast.expr
    results: tuple[str, ...]
    before: frozenset[str]
    unsure: frozenset[str]

    @property
    def returns(self) -> bool:
        """Whether the function may end there."""
        return any(isinstance(node, ast.Return) for node in ast.walk(self.node))

    @property
    def stored(self) -> set[str]:
        """The variables that it gives values to."""
        return {*_stored(self.node)}

    @property
    def needed(self) -> set[str]:
        """The results that it may leave as they are."""
        return {*self.results} - _surely_set([self.node])

    def may_write(self, function: FunctionType) -> bool:
        """Whether it may write to a tensor that it reads, in place."""
        nodes = list(ast.walk(self.node))
        calls = [node for node in nodes if isinstance(node, ast.Call)]
        adds = any(isinstance(node, ast.AugAssign) for node in nodes)
        return adds or not all(_only_computes(call, function) for call in calls)


def piece_around(function: FunctionType, place: Span) -> Piece | None:
    """The smallest piece around a place in a function; None if there is none."""
    tree = definition(function)
    if not isinstance(tree, ast.FunctionDef):
        return None
    path = _path_to(tree, place)
    candidates = [node for node in reversed(path) if isinstance(node, PIECES)]
    statement = next((node for node in reversed(path) if isinstance(node, ast.stmt)), None)
    if isinstance(statement, ast.If | ast.Assert):  # what decides it goes with it, if that can be
        candidates.insert(0, statement)
    pieces = (_piece(node, tree) for node in candidates if not _is_one_comparison(node))
    return next((piece for piece in pieces if _is_one_step(piece, function)), None)


def _is_one_comparison(node: ast.AST) -> bool:
    """Whether it is a comparison that asks for no truth: what it returns, others ask."""
    return isinstance(node, ast.Compare) and len(node.ops) == 1


PIECES = (
    ast.Assign, ast.If, ast.For, ast.Assert, ast.Call, ast.IfExp, ast.BoolOp, ast.Compare,
    ast.UnaryOp, ast.JoinedStr, ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp,
)  # fmt: skip
"""What may be taken out of a function."""


def span_of(node: ast.stmt | ast.expr) -> Span:
    """Where a node stands."""
    return node.lineno, node.end_lineno or 0, node.col_offset, node.end_col_offset or 0


def place_of(function: FunctionType, span: Span, *, indented: bool) -> Span | None:
    """A place in a file as one in the source of a function; None if that is not at hand.

    Args:
        function: The function.
        span: The place.
        indented: Whether its columns are those of the file.
    """
    if definition(function) is None:
        return None
    try:
        lines, _ = inspect.getsourcelines(function)
    except OSError:  # it was, and its file has gone meanwhile
        return None
    above = function.__code__.co_firstlineno - 1
    indent = len(lines[0]) - len(lines[0].lstrip()) if indented else 0
    first, last, start, end = span
    return first - above, last - above, start - indent, end - indent


def _owner_of(function: FunctionType) -> str | None:
    """The name by which a method calls its module; None for any other function."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return names[0] if names and "." in function.__qualname__.rpartition("<locals>.")[2] else None


def root_of(node: ast.expr) -> ast.expr:
    """What a chain of attributes begins with."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node


def _path_to(tree: ast.AST, place: Span) -> list[ast.stmt | ast.expr]:
    """The statements and expressions around a place, the outermost one first."""
    path: list[ast.stmt | ast.expr] = []
    pending = list(ast.iter_child_nodes(tree))
    while pending:
        node = pending.pop()
        if not isinstance(node, ast.stmt | ast.expr):
            pending.extend(ast.iter_child_nodes(node))
        elif _holds(span_of(node), place):
            path.append(node)
            pending = list(ast.iter_child_nodes(node))
    return path


def _holds(outer: Span, inner: Span) -> bool:
    begins = (outer[0], outer[2]) <= (inner[0], inner[2])
    return begins and (inner[1], inner[3]) <= (outer[1], outer[3])


def _piece(node: ast.stmt | ast.expr, tree: ast.FunctionDef) -> Piece:
    inside = {id(inner) for inner in ast.walk(node)}
    names = [other for other in ast.walk(tree) if isinstance(other, ast.Name)]
    outside = [name for name in names if id(name) not in inside]
    stored, before = {*_stored(node)}, {*_set_before(node, tree)}
    # What an earlier turn of a loop, or other code, may have set.
    set_elsewhere = stored if _repeats(node, tree) else _named(outside, ast.Store)
    own = _named((name for name in names if id(name) in inside), ast.Load)
    ends = isinstance(node, ast.If) and _ends(node.body) and not node.orelse
    results = set[str]() if ends else _named(outside, ast.Load) & stored
    unsure = own & stored & set_elsewhere - before
    return Piece(node, tuple(sorted(results)), frozenset(before), frozenset(unsure))


def _named(names: Iterable[ast.Name], context: type[ast.expr_context]) -> set[str]:
    return {name.id for name in names if isinstance(name.ctx, context)}


def _repeats(node: ast.AST, tree: ast.AST) -> bool:
    """Whether a node stands in a loop."""
    loops = (other for other in ast.walk(tree) if isinstance(other, ast.For | ast.While))
    return any(loop is not node and _contains(loop, node) for loop in loops)


def _contains(tree: ast.AST, node: ast.AST) -> bool:
    return any(inner is node for inner in ast.walk(tree))


# -- Whether it is one step -----------------------------------------------------------------------


def _is_one_step(piece: Piece, function: FunctionType) -> bool:
    """Whether a piece only computes new values of those that it reads, or checks them."""
    nodes = list(ast.walk(piece.node))
    functions = [node.func for node in nodes if isinstance(node, ast.Call)]
    run = {id(root_of(f)) for f in functions if isinstance(f, ast.Attribute)}
    inside_chains = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    owner = _owner_of(function)
    if piece.returns and not _ends_forward(piece.node, function):
        return False
    for node in nodes:
        if isinstance(node, _NEVER) or _stores_elsewhere(node):
            return False
        if isinstance(node, ast.Name):
            whole = node.id == owner and (id(node) not in inside_chains or id(node) in run)
            if whole or node.id in _SEE_EVERYTHING:
                return False  # it may run a part of the module
    return not piece.unsure and not piece.needed - piece.before


def _ends_forward(node: ast.AST, function: FunctionType) -> bool:
    """Whether it is ``if ...: return ...`` in a forward, with nothing else that returns."""
    match node:
        case ast.If(body=[*others, ast.Return()], orelse=[]):
            inner = (part for other in others for part in ast.walk(other))
            return function.__name__ == "forward" and not any(
                isinstance(part, ast.Return) for part in inner
            )
    return False


def _stores_elsewhere(node: ast.AST) -> bool:
    """Whether a value goes into an object and not into a variable."""
    stores = not isinstance(getattr(node, "ctx", ast.Load()), ast.Load)
    return stores and not isinstance(node, ast.Name | ast.Tuple | ast.Starred)


_NEVER = (
    ast.Yield, ast.YieldFrom, ast.Await, ast.Break, ast.Continue, ast.Global,
    ast.Nonlocal, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.NamedExpr,
    ast.Import, ast.ImportFrom, ast.Delete, ast.With, ast.AsyncWith, ast.Try, ast.AsyncFor,
    ast.While, ast.Match,
)  # fmt: skip

_SEE_EVERYTHING = {"super", "locals", "vars", "eval", "exec", "setattr", "next", "__class__"}

_COMPREHENSIONS = ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp


def bound_in_comprehensions(node: ast.AST) -> set[str]:
    """The variables of comprehensions, which nothing else sees."""
    inside = (inner for inner in ast.walk(node) if isinstance(inner, ast.comprehension))
    return {name for inner in inside for name in _names_stored(inner.target)}


def _stored(node: ast.AST) -> Iterator[str]:
    """The variables that code gives values to."""
    if isinstance(node, _COMPREHENSIONS):
        return
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    for child in ast.iter_child_nodes(node):
        yield from _stored(child)


def _names_stored(target: ast.AST) -> Iterator[str]:
    return (node.id for node in ast.walk(target) if isinstance(node, ast.Name))


def _surely_set(statements: Sequence[ast.stmt | ast.expr]) -> set[str]:
    """The variables to which some statements give values, whichever way they take."""
    names: set[str] = set()
    for statement in statements:
        match statement:
            case ast.If(body=body, orelse=orelse):
                ways = [_surely_set(way) for way in (body, orelse) if not _ends(way)]
                names |= set.intersection(*ways) if ways else set()
            case ast.Assign() | ast.AugAssign() | ast.AnnAssign(value=ast.expr()):
                names.update(_stored(statement))
            case ast.With(body=body):
                names |= _surely_set(body)
    return names


def _ends(statements: Sequence[ast.stmt]) -> bool:
    return bool(statements) and isinstance(statements[-1], ast.Raise | ast.Return)


def _set_before(node: ast.AST, tree: ast.FunctionDef) -> Iterator[str]:
    """The parameters, and the variables that surely have a value where a node stands."""
    yield from (inner.arg for inner in ast.walk(tree.args) if isinstance(inner, ast.arg))
    block: Sequence[ast.stmt] = tree.body
    while block:
        around = next((statement for statement in block if _contains(statement, node)), None)
        if around is None:
            return
        yield from _surely_set(block[: block.index(around)])
        if around is node:
            return
        if isinstance(around, ast.For):
            yield from _names_stored(around.target)
        inside = (getattr(around, name, []) for name in ("body", "orelse", "finalbody"))
        block = next((b for b in inside if any(_contains(s, node) for s in b)), [])


# -- Whether it writes in place -------------------------------------------------------------------


def _only_computes(call: ast.Call, function: FunctionType) -> bool:
    """Whether a call surely writes to nothing that it is given."""
    if {keyword.arg for keyword in call.keywords} & {"out", "inplace", None}:
        return False
    value = _value_of(call.func, function)
    if value is None:  # a method of a value
        name = call.func.attr if isinstance(call.func, ast.Attribute) else "_"
        return hasattr(Tensor, name) and not name.endswith("_")
    if isinstance(value, type) and issubclass(value, BaseException):
        return True
    home, name = str(getattr(value, "__module__", "")), str(getattr(value, "__name__", "_"))
    known = home.partition(".")[0] in ("torch", "builtins", "math", "warnings", "logging")
    return known and not name.endswith("_")


def _value_of(expression: ast.expr, function: FunctionType) -> Any:
    """What a global name, or an attribute of a Python module, stands for; None for any other."""
    match expression:
        case ast.Name(id=name):
            return function.__globals__.get(name, vars(builtins).get(name))
        case ast.Attribute(value=value, attr=attr):
            home = _value_of(value, function)
            return getattr(home, attr, None) if isinstance(home, ModuleType) else None
    return None
