"""Pieces of code that only a run decides, taken out of a function while it is traced.

Code such as ``if h % 8: x = F.pad(x, ...)`` or ``assert l == 196, f"got {l}"`` asks a proxy what it
cannot tell. The function runs other code for a while, which calls a `CodeStatement` there.
"""

from __future__ import annotations
import __future__

import ast
import copy
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from reparam.capture.code_statement import CodeStatement
from reparam.capture.reading import (
    PIECES,
    Piece,
    Span,
    bound_in_comprehensions,
    codes_in,
    definition,
    functions_below,
    piece_around,
    place_of,
    root_of,
    span_of,
)


@dataclass(frozen=True, eq=False)
class Outlined:
    """A function some of whose code is called and not traced.

    Args:
        function: The function.
        original: Its code.
        pieces: What is called.
        code: What it runs while it is traced.
    """

    function: FunctionType
    original: CodeType
    pieces: tuple[Piece, ...]
    code: CodeType


@contextmanager
def running_outlined(functions: Sequence[Outlined]) -> Iterator[None]:
    """Let functions call pieces of their code."""
    for outlined in functions:
        outlined.function.__code__ = outlined.code
    try:
        yield
    finally:
        for outlined in functions:
            outlined.function.__code__ = outlined.original


def with_failing_outlined(
    error: BaseException, module: nn.Module, functions: tuple[Outlined, ...]
) -> tuple[Outlined, ...] | None:
    """Take out the piece of code in which an exception was raised, too.

    Args:
        error: The exception.
        module: The module whose forward it ended.
        functions: Those of which something was taken out before.

    Returns:
        The same and one more, or one of which more is taken out; None if that cannot be.
    """
    code, span = _failing_place(error)
    earlier = next((outlined for outlined in functions if outlined.code is code), None)
    function = earlier.function if earlier else _function_of(code, module)
    if function is None or span is None:
        return None
    pieces = earlier.pieces if earlier else ()
    # The code of one that was changed before comes of its own source, without its class around it.
    place = place_of(function, span, indented=earlier is None)
    piece = None if place is None else piece_around(function, place)
    if piece is None or any(piece.node is other.node for other in pieces):
        return None
    outlined = _without(function, (*pieces, piece))
    others = tuple(other for other in functions if other is not earlier)
    return None if outlined is None else (*others, outlined)


def _failing_place(error: BaseException) -> tuple[CodeType | None, Span | None]:
    """The deepest code of a model's that ran, and the place in it."""
    code, instruction, trace = None, 0, error.__traceback__
    while trace is not None:
        ran = trace.tb_frame.f_code
        home = str(trace.tb_frame.f_globals.get("__name__", ""))
        # A comprehension is a part of the statement around it.
        if not home.startswith(("torch.fx", "reparam.", "torch._")) and ran.co_name[0] != "<":
            code, instruction = ran, trace.tb_lasti
        trace = trace.tb_next
    if code is None:
        return None, None
    first, last, start, end = next(itertools.islice(code.co_positions(), instruction // 2, None))
    if first is None or last is None or start is None or end is None:
        return code, None
    return code, (first, last, start, end)


def place_of_failure(error: BaseException) -> str:
    """The file and the line of a model's code at which an exception ended it; nothing if none."""
    code, span = _failing_place(error)
    return "" if code is None or span is None else f"{Path(code.co_filename).name}:{span[0]}, "


def _function_of(code: CodeType | None, module: nn.Module) -> FunctionType | None:
    """The function that has some code, of those that a module's forward may run."""
    classes = (vars(kind).values() for kind in type(module).__mro__ if kind is not nn.Module)
    torchs = (value for value in itertools.chain(*classes) if isinstance(value, FunctionType))
    functions = itertools.chain(functions_below(module, module.forward), torchs)
    return next((function for function in functions if function.__code__ is code), None)


# -- The function without it ----------------------------------------------------------------------


def _without(function: FunctionType, pieces: tuple[Piece, ...]) -> Outlined | None:
    """A function that calls some pieces of its code."""
    tree, original = definition(function), function.__code__
    if not isinstance(tree, ast.FunctionDef):
        return None
    statements: dict[str, CodeStatement] = {}
    calls: dict[Span, ast.AST] = {}
    for number, piece in enumerate(pieces):
        key = f"statement {number} of {__name__}"  # stands for it until the code is compiled
        statements[key], values = _statement(piece, function)
        calls[span_of(piece.node)] = _call(piece, key, values)
    changed = _Replacing(calls).visit(copy.deepcopy(tree))
    code = _compiled(changed, function)
    if code is None or code.co_freevars != original.co_freevars:
        return None
    constants = (
        statements.get(value, value) if isinstance(value, str) else value
        for value in code.co_consts
    )
    return Outlined(function, original, pieces, code.replace(co_consts=tuple(constants)))


def _statement(piece: Piece, function: FunctionType) -> tuple[CodeStatement, list[ast.expr]]:
    """What a piece of code does, as a function, and what that is given."""
    reading = _Reading(piece, function)
    own = reading.visit(copy.deepcopy(piece.node))
    for name in piece.needed:
        reading.parameters.setdefault(name, ast.Name(name, ast.Load()))
    if piece.returns and isinstance(own, ast.If) and isinstance(own.body[-1], ast.Return):
        value = own.body[-1].value or ast.Constant(None)
        own.body[-1] = ast.Return(ast.Tuple([value], ast.Load()))
    body: list[ast.stmt] = [ast.Return(own)] if isinstance(own, ast.expr) else [own]
    if isinstance(own, ast.stmt) and piece.results:
        body.append(ast.Return(_variables(piece.results, ast.Load())))
    defined = ast.FunctionDef("statement", _parameters(reading.parameters), body, [])
    source = ast.unparse(ast.fix_missing_locations(defined))
    line = piece.node.lineno + function.__code__.co_firstlineno - 1
    statement = CodeStatement(
        source,
        home=str(function.__module__),
        place=f"{function.__code__.co_filename}:{line}",
        checks=isinstance(own, ast.stmt) and not piece.results,
        writes=piece.may_write(function),
        returns=piece.returns,
        variables=function.__globals__,
    )
    return statement, list(reading.parameters.values())


def _call(piece: Piece, key: str, values: list[ast.expr]) -> ast.AST:
    """The call that stands in the place of a piece of code."""
    # A method of a constant: Python warns of a constant that is called.
    called = ast.Call(ast.Attribute(ast.Constant(key), "__call__", ast.Load()), values, [])
    if isinstance(piece.node, ast.expr):
        return ast.copy_location(called, piece.node)
    if piece.returns:
        return _returning(called, piece.node)
    if not piece.results:
        return ast.copy_location(ast.Expr(called), piece.node)
    target = _variables(piece.results, ast.Store())
    return ast.copy_location(ast.Assign([target], called), piece.node)


def _returning(called: ast.expr, place: ast.stmt) -> ast.stmt:
    """End the function if a call makes a tuple, with what that holds."""
    result = ast.NamedExpr(ast.Name("__returned__", ast.Store()), called)
    made = ast.Compare(result, [ast.IsNot()], [ast.Constant(None)])
    name = ast.Name("__returned__", ast.Load())
    value = ast.Subscript(name, ast.Constant(0), ast.Load())
    return ast.copy_location(ast.If(made, [ast.Return(value)], []), place)


def _variables(names: Sequence[str], context: ast.expr_context) -> ast.expr:
    values: list[ast.expr] = [ast.Name(name, context) for name in names]
    return values[0] if len(values) == 1 else ast.Tuple(values, context)


def _parameters(names: Iterable[str]) -> ast.arguments:
    return ast.arguments([], [ast.arg(name) for name in names], None, [], [], None, [])


class _Replacing(ast.NodeTransformer):
    """Puts calls in the place of pieces of code, which it finds by where they stand."""

    def __init__(self, calls: Mapping[Span, ast.AST]) -> None:
        self.calls = calls

    def visit(self, node: ast.AST) -> Any:
        """What stands in the place of a node."""
        if isinstance(node, PIECES) and span_of(node) in self.calls:
            return self.calls[span_of(node)]
        return self.generic_visit(node)


class _Reading(ast.NodeTransformer):
    """Finds what a piece of code reads of the function around it.

    Attributes:
        parameters: What each parameter of the piece is given.
    """

    def __init__(self, piece: Piece, function: FunctionType) -> None:
        code = function.__code__
        stored = piece.stored
        local = {*code.co_varnames, *code.co_cellvars, *code.co_freevars}
        local -= bound_in_comprehensions(piece.node)
        self.local = local - (stored - piece.before)
        self.steady = local - stored
        self.parameters: dict[str, ast.expr] = {}
        self._names: dict[str, str] = {}
        names = (node for node in ast.walk(piece.node) if isinstance(node, ast.Name))
        self._variables = {name.id for name in names}

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        """Read an attribute of a value where the piece is called: its shape, say."""
        if not self._is_steady(node):
            self.generic_visit(node)
            return node
        return self._length(node.value) if node.attr == "ndim" else self._parameter(node)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        """Read the shape of a value where the piece is called, and ask that."""
        match node:
            case ast.Call(func=ast.Attribute(value=value, attr="dim" | "ndimension"), args=[]):
                if self._is_steady(value):
                    return self._length(value)
            case ast.Call(func=ast.Attribute(value=value, attr="size"), args=axes, keywords=[]):
                if self._is_steady(value) and len(axes) < 2:
                    shape = self._shape(value)
                    return ast.Subscript(shape, self.visit(axes[0]), ast.Load()) if axes else shape
        if isinstance(node.func, ast.Attribute):  # the piece calls the method
            node.func.value = self.visit(node.func.value)
            node.args = [*map(self.visit, node.args)]
            node.keywords = [*map(self.visit, node.keywords)]
            return node
        self.generic_visit(node)
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Take a value as it is."""
        if isinstance(node.ctx, ast.Load) and node.id in self.local:
            self.parameters.setdefault(node.id, ast.Name(node.id, ast.Load()))
        return node

    def _is_steady(self, node: ast.expr) -> bool:
        """Whether it is a variable that the piece leaves alone, or a chain of its attributes."""
        root = root_of(node)
        return isinstance(root, ast.Name) and root.id in self.steady

    def _length(self, value: ast.expr) -> ast.expr:
        return ast.Call(ast.Name("len", ast.Load()), [self._shape(value)], [])

    def _shape(self, value: ast.expr) -> ast.expr:
        return self._parameter(ast.Attribute(value, "shape", ast.Load()))

    def _parameter(self, expression: ast.expr) -> ast.expr:
        text = ast.unparse(expression)
        if text not in self._names:
            # ``x.a_b`` and ``x_a.b`` are two, and there may be variables of that name.
            name = f"{re.sub(r'[^a-zA-Z0-9]', '_', text)}_{len(self._names)}"
            while name in self._variables:
                name += "_"
            self._names[text] = name
            self.parameters[name] = copy.deepcopy(expression)
        return ast.Name(self._names[text], ast.Load())


def _compiled(tree: ast.FunctionDef, function: FunctionType) -> CodeType | None:
    """The code of a function, compiled where it finds the variables around it."""
    tree.decorator_list = []
    original = function.__code__
    inner: list[ast.stmt] = [tree]
    qualified = function.__qualname__.rpartition("<locals>.")[2].split(".")
    if len(qualified) > 1:  # private names are those of the class
        inner = [ast.ClassDef(qualified[-2], [], [], [tree], [])]
    around = [name for name in original.co_freevars if name != "__class__"]
    outer = ast.FunctionDef("around", _parameters(around), inner, [], lineno=1)
    module = ast.fix_missing_locations(ast.Module([outer], []))
    ast.increment_lineno(module, original.co_firstlineno - 1)
    flags = original.co_flags & __future__.annotations.compiler_flag
    compiled = compile(module, original.co_filename, "exec", flags, dont_inherit=True)
    for code in codes_in(compiled):
        if code.co_name == original.co_name and code.co_varnames[:1] == original.co_varnames[:1]:
            first = original.co_firstlineno
            return code.replace(co_qualname=original.co_qualname, co_firstlineno=first)
    return None
