"""What example inputs decide of the way that a forward takes: by kinds of values, never by sizes.

Code such as ``if x.ndim == 4: x = self.conv(x)`` runs other parts for other inputs. Where nothing
else lets it be traced, the number of axes, the type and the device of a value are those that the
example inputs lead to, and the fused model checks that they are.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from reparam.capture.checked_values import decided
from reparam.capture.code_statement import CodeStatement
from reparam.capture.operator_traits import reads_shape

Answer = bool | int

Decide = Callable[[Mapping[str, Any], fx.Graph, fx.Node], Answer | None]
"""Tells what a node of a graph is on example inputs; None if that fails.

It gets the arguments of the forward, the graph as far as it is traced, and the node."""

_METHODS = {"dim", "ndimension", "is_floating_point", "is_complex"}

_ATTRIBUTES = {"ndim", "dtype", "device", "is_cuda"}

_OF_DEVICES = {"type", "index"}

MOST_DECISIONS = 64
"""A forward that asks more often is left alone: each question is a run of its own."""


class Decisions:
    """The questions of a forward that example inputs decide, in the order in which it asks them.

    Args:
        tracer: Traces the forward.
        answers: What earlier attempts have found out.
    """

    def __init__(self, tracer: Any, answers: Sequence[Answer]) -> None:
        self.undecided: fx.Node | None = None
        """The first question that has no answer yet."""
        self._tracer = tracer
        self._answers = answers
        self._asked = 0

    def truth(self, proxy: fx.Proxy) -> Answer | None:
        """Whether something is true, which the new code checks; None if that is not decided."""
        return self._answer(proxy.node) if asks_kinds(proxy.node) else None

    def length(self, proxy: fx.Proxy) -> Answer | None:
        """The same of the length of a shape."""
        if not reads_shape(proxy.node):
            return None
        of = proxy.node.all_input_nodes[:1]
        return self._answer(self._tracer.create_node("call_method", "dim", tuple(of), {}))

    def _answer(self, question: fx.Node) -> Answer | None:
        call = self._tracer.innermost()
        if call is None:
            return None
        if self._asked == len(self._answers):
            self.undecided = self.undecided or question
            return None
        answer = self._answers[self._asked]
        self._asked += 1
        call.decided = True
        where = call.path or "the model"
        source = f"def statement(value):\n    decided(value, {answer!r}, {where!r})\n"
        check = CodeStatement(source, decided.__module__, where, checks=True, writes=False)
        self._tracer.create_node("call_function", check, (question,), {})
        return answer


def asks_kinds(node: fx.Node) -> bool:
    """Whether a value follows from numbers of axes, types and devices alone."""
    target, operands = node.target, node.all_input_nodes
    if node.op == "call_method":
        return target in _METHODS
    if target is getattr:
        attribute = node.args[1]
        return attribute in _ATTRIBUTES or (attribute in _OF_DEVICES and asks_kinds(operands[0]))
    if isinstance(target, CodeStatement):
        return _Code(ast.parse(target.source).body[0], node.args).names_kinds()
    named = getattr(operator, str(getattr(target, "__name__", "")), None) is target
    return named and bool(operands) and all(map(asks_kinds, operands))


def chooses_by_kinds(node: fx.Node) -> bool:
    """Whether a node is code that makes a value of kinds alone: ``1 if x.ndim == 4 else 2``."""
    return isinstance(node.target, CodeStatement) and node.target.chooses and asks_kinds(node)


_PARTS = (
    ast.FunctionDef, ast.Return, ast.Assign, ast.Compare, ast.BoolOp, ast.UnaryOp, ast.IfExp,
    ast.Tuple, ast.List,
)  # fmt: skip

_LEAVES = (
    ast.Constant, ast.arguments, ast.cmpop, ast.boolop, ast.unaryop, ast.expr_context,
)  # fmt: skip


class _Code:
    """The code of a `CodeStatement`, and what its parameters are given."""

    def __init__(self, code: ast.stmt, given: Sequence[Any]) -> None:
        self.code = code
        nodes = list(ast.walk(code))
        names = [node.arg for node in nodes if isinstance(node, ast.arg)]
        arguments = dict(zip(names, given, strict=False))
        nodes_given = {n: value for n, value in arguments.items() if isinstance(value, fx.Node)}
        self.shapes = {name for name, node in nodes_given.items() if reads_shape(node)}
        numbers = arguments.keys() - {n for n, node in nodes_given.items() if not asks_kinds(node)}
        stored = {
            node.id
            for node in nodes
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        self.kinds = numbers | stored

    def names_kinds(self) -> bool:
        """Whether it asks the values that it reads for their kinds, and for nothing else."""
        return self._asks(self.code)

    def _asks(self, code: ast.AST) -> bool:
        if isinstance(code, ast.Name):
            return code.id in self.kinds
        if isinstance(code, ast.Call):
            return self._asks_by_call(code)
        if isinstance(code, ast.Attribute):
            asked = code.attr in _ATTRIBUTES | _OF_DEVICES
            if isinstance(code.value, ast.Name):
                return asked or code.value.id == "torch"
            return asked and self._asks(code.value)
        if isinstance(code, _PARTS):
            return all(map(self._asks, ast.iter_child_nodes(code)))
        return isinstance(code, _LEAVES)

    def _asks_by_call(self, code: ast.Call) -> bool:
        """Whether a call is ``x.dim()`` and the like, or ``len`` of a shape."""
        if isinstance(code.func, ast.Attribute):
            return code.func.attr in _METHODS and not code.args
        shape = code.args[0] if len(code.args) == 1 else None
        counts = isinstance(code.func, ast.Name) and code.func.id == "len"
        if isinstance(shape, ast.Name):
            return counts and shape.id in self.shapes
        if isinstance(shape, ast.Call) and not shape.args:
            shape = shape.func
        return counts and isinstance(shape, ast.Attribute) and shape.attr in ("shape", "size")
