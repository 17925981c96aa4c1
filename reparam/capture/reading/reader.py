"""Read the code of one function: which modules it calls, and what else it does with them."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

from torch import nn

from reparam.capture.reading.follower import Follower, Notes, is_plain_container, weights_in
from reparam.capture.reading.source import Definition, parameters_of, repeats
from reparam.capture.reading.values import (
    NOTHING,
    Known,
    Outside,
    Several,
    Super,
    TensorsOf,
    Values,
    constant,
    container,
    contents,
    modules_in,
    refer_to,
    row,
    union,
)


class Reader(Follower):
    """Reads the code of one function. What a name may be only grows from line to line.

    Args:
        reach: Takes what is found.
        function: The function.
        node: Its syntax tree.
        args: What its positional arguments may be.
        keywords: What its keyword arguments may be; what may be any of them under ``**``.
        strict: Whether the model runs it. If not, only what it calls is noted.
    """

    def __init__(
        self,
        reach: Notes,
        function: FunctionType,
        node: Definition,
        args: tuple[Values, ...],
        keywords: Mapping[str, Values],
        strict: bool,
    ) -> None:
        super().__init__(reach, strict)
        self.node = node
        self.returned = NOTHING
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        enclosing = {name: contents(cell) for name, cell in cells}
        self.outer = enclosing, function.__globals__, vars(builtins)
        self.names: dict[str, Values] = dict(_bind(function, args, keywords))

    def read(self) -> Values:
        """Read the function, and say what it may return."""
        for _ in range(4 if repeats(self.node) else 1):
            before = dict(self.names)
            for statement in self.node.body:
                self.statement(statement)
            if self.names == before:
                break
        return self.returned

    def outside(self, name: str) -> Any:
        """What a name is that the function does not define; None where it is nothing."""
        return next((scope[name] for scope in self.outer if name in scope), None)

    # -- Statements ---------------------------------------------------------------------------

    def statement(self, node: ast.stmt) -> None:
        """Read one statement."""
        match node:
            case ast.Return(value=value) if value is not None:
                self.returned |= self.value(value)
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    self.assign(target, self.value(value), value)
            case ast.AnnAssign(target=target, value=value) if value is not None:
                self.assign(target, self.value(value), value)
            case ast.AugAssign(target=target, value=value):
                self.assign(target, self.value(value))
            case ast.For(target=target, iter=several) | ast.AsyncFor(target=target, iter=several):
                self.assign(target, self.each(several))
                self.block(node.body)
                self.block(node.orelse)
            case ast.If(test=test, body=body, orelse=orelse):
                known = constant(self.value(test))
                self.block(body, runs=known is None or bool(known.value))
                self.block(orelse, runs=known is None or not known.value)
            case ast.With(items=items) | ast.AsyncWith(items=items):
                for item in items:
                    values = self.value(item.context_expr)
                    self.use(values)
                    if item.optional_vars is not None:
                        self.assign(item.optional_vars, values)
                self.block(node.body)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self.block(node.body)
            case _:
                self.inside(node)

    def block(self, statements: list[ast.stmt], *, runs: bool = True) -> None:
        """Read statements; those that run only if somebody asks for it are read less strictly."""
        strict = self.strict
        self.strict = strict and runs
        for statement in statements:
            self.statement(statement)
        self.strict = strict

    def inside(self, node: ast.AST) -> None:
        """Read all statements and expressions in a piece of code."""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                self.statement(child)
            elif isinstance(child, ast.expr):
                self.use(weights_in(self.value(child)))
            else:
                self.inside(child)

    def assign(self, target: ast.expr, values: Values, source: ast.expr | None = None) -> None:
        """Add what a target of an assignment may be."""
        match target:
            case ast.Name(id=name):
                self.names[name] = self.names.get(name, NOTHING) | values
            case ast.Tuple(elts=targets) | ast.List(elts=targets):
                written = source.elts if isinstance(source, ast.Tuple | ast.List) else []
                for index, one in enumerate(targets):
                    if len(written) == len(targets):
                        self.assign(one, self.value(written[index]), written[index])
                    else:
                        self.assign(one, self.place(values, index, len(targets)))
            case ast.Starred(value=value):
                self.assign(value, container(values))
            case ast.Subscript(value=ast.Name(id=name), slice=index):
                self.value(index)
                self.names[name] = self.names.get(name, NOTHING) | container(values)
            case _:
                self.inside(target)
                self.use(values)

    # -- Expressions --------------------------------------------------------------------------

    def value(self, node: ast.expr) -> Values:
        """What an expression may be; what it does with modules is noted."""
        match node:
            case ast.Constant(value=value):
                return refer_to(value)
            case ast.Name(id=name):
                if name in self.names:
                    return self.names[name]
                return refer_to(self.outside(name))
            case ast.Attribute(value=base, attr="dtype") if self.is_of_one_type(base):
                return NOTHING
            case ast.Attribute(value=base, attr=name):
                return union(self.attribute(value, name) for value in self.value(base))
            case ast.Subscript(value=base, slice=index):
                self.value(index)
                return self.entries(self.value(base), index)
            case ast.Call():
                return self.call(node)
            case ast.BoolOp(op=op, values=several):
                return _decided(op, list(map(self.value, several)))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                known = constant(self.value(operand))
                return NOTHING if known is None else frozenset([Known(not known.value)])
            case ast.IfExp(test=test, body=body, orelse=orelse):
                self.value(test)
                return self.value(body) | self.value(orelse)
            case ast.NamedExpr(target=target, value=value):
                values = self.value(value)
                self.assign(target, values)
                return values
            case _:
                return self.composed(node)

    def composed(self, node: ast.expr) -> Values:
        """What an expression that makes something of others may be."""
        match node:
            case ast.Tuple(elts=several) if not any(isinstance(e, ast.Starred) for e in several):
                return row(tuple(map(self.value, several)))
            case ast.Tuple(elts=several) | ast.List(elts=several) | ast.Set(elts=several):
                return container(union(map(self.value, several)))
            case ast.Dict(keys=keys, values=several):
                for key in keys:
                    if key is not None:
                        self.value(key)
                return container(union(map(self.value, several)))
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                return self.comprehension(node)
            case ast.Starred(value=value):
                return self.elements(self.value(value))
            case ast.Lambda(body=body):
                return self.value(body)
            case ast.BinOp(left=left, right=right):
                values = self.value(left) | self.value(right)
                self.use(weights_in(values))
                return frozenset(value for value in values if isinstance(value, Several))
            case ast.Yield(value=value) | ast.YieldFrom(value=value) | ast.Await(value=value):
                if value is not None:
                    self.use(self.value(value))
                return NOTHING
            case _:
                self.inside(node)
                return NOTHING

    def comprehension(
        self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp
    ) -> Values:
        """What a comprehension may hold."""
        outside = dict(self.names)
        for part in node.generators:
            self.assign(part.target, self.each(part.iter))
            for test in part.ifs:
                self.value(test)
                self.narrow(part.target, test)
        if isinstance(node, ast.DictComp):
            self.value(node.key)
        values = container(self.value(node.value if isinstance(node, ast.DictComp) else node.elt))
        for name, before in outside.items():
            self.names[name] |= before
        return values

    def is_of_one_type(self, node: ast.expr) -> bool:
        """Whether an expression is the weight of some layer, and it does not matter of which."""
        match node:
            case ast.Attribute(value=ast.Call(func=ast.Name(id="next"))):
                forget = self.reach.remember()
                values = self.value(node)
                found = [value.owner for value in values if isinstance(value, TensorsOf)]
                tensors = [tensor for owner in found for tensor in owner._parameters.values()]
                types = {tensor.dtype for tensor in tensors if tensor is not None}
                if len(found) == len(values) and len(types) == 1:
                    forget()
                    return True
        return False

    def narrow(self, target: ast.expr, test: ast.expr) -> None:
        """Leave out what a comprehension's variable is not where ``if isinstance`` says so."""
        match target, test:
            case ast.Name(id=name), ast.Call(func=function, args=[ast.Name(id=asked), kind]):
                kinds = self.value(kind)
                known = [one.value for one in kinds if isinstance(one, Outside)]
                plain = known and all(
                    type(one) is type and issubclass(one, nn.Module) for one in known
                )
                if asked == name and plain and self.value(function) == {Outside(isinstance)}:
                    self.names[name] = frozenset(
                        value
                        for value in self.names.get(name, NOTHING)
                        if not isinstance(value, nn.Module) or isinstance(value, tuple(known))
                    )

    def each(self, several: ast.expr) -> Values:
        """What a loop may meet; who loops over weights may count them, and so uses them."""
        found = self.elements(self.value(several))
        self.use(weights_in(found))
        return found

    def entries(self, values: Values, index: ast.expr) -> Values:
        """What ``values[index]`` may be."""
        found = self.elements(values)
        if isinstance(index, ast.Slice):
            return container(found)
        key = constant(self.value(index))
        if key is None or not all(map(is_plain_container, values)):
            return found
        try:
            return frozenset(value[key.value] for value in values)
        except (KeyError, IndexError, TypeError):
            return found

    # -- Calls --------------------------------------------------------------------------------

    def call(self, node: ast.Call) -> Values:
        """What a call may return."""
        args, keywords = self.arguments(node)
        if isinstance(node.func, ast.Name) and node.func.id == "super":
            return self.super_of(args)
        functions = self.value(node.func)
        if not functions:
            self.use(union((*args, *keywords.values())))
        return union(self.called(function, args, keywords) for function in functions)

    def arguments(self, node: ast.Call) -> tuple[tuple[Values, ...], dict[str, Values]]:
        """What the arguments of a call may be; those of unknown place under ``**``."""
        args: list[Values] = []
        spread = NOTHING
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                spread |= self.value(argument)
            elif not spread:
                args.append(self.value(argument))
            else:
                spread |= self.value(argument)
        keywords: dict[str, Values] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                spread |= self.elements(self.value(keyword.value))
            else:
                keywords[keyword.arg] = self.value(keyword.value)
        if modules_in(spread):
            keywords["**"] = spread
        return tuple(args), keywords

    def super_of(self, args: tuple[Values, ...]) -> Values:
        """What ``super()`` may be."""
        if len(args) == 2:
            kinds = [value.value for value in args[0] if isinstance(value, Outside)]
            owners = args[1]
        else:
            kinds = [self.outside("__class__")]
            parameters = [*self.node.args.posonlyargs, *self.node.args.args]
            owners = self.names[parameters[0].arg] if parameters else NOTHING
        modules = [owner for owner in owners if isinstance(owner, nn.Module)]
        return frozenset(Super(owner, kind) for kind in kinds if kind for owner in modules)


def _bind(
    function: FunctionType, args: tuple[Values, ...], keywords: Mapping[str, Values]
) -> Iterator[tuple[str, Values]]:
    """The parameters of a function and what they may be."""
    spread = keywords.get("**", NOTHING)
    for index, parameter in enumerate(parameters_of(function)):
        if parameter.kind is parameter.VAR_POSITIONAL:
            yield parameter.name, container(union(args[index:]) | spread)
        elif parameter.kind is parameter.VAR_KEYWORD:
            yield parameter.name, container(union(keywords.values()))
        elif index < len(args) and parameter.kind is not parameter.KEYWORD_ONLY:
            yield parameter.name, args[index]
        elif parameter.name in keywords:
            yield parameter.name, keywords[parameter.name]
        elif parameter.default is not parameter.empty:
            yield parameter.name, refer_to(parameter.default) | spread
        else:
            yield parameter.name, spread


def _decided(op: ast.boolop, several: list[Values]) -> Values:
    """What ``and`` or ``or`` of expressions may be."""
    ends = not isinstance(op, ast.And)
    for values in several:
        known = constant(values)
        if known is not None and bool(known.value) == ends:
            return frozenset([known])
    return union(several)
