"""Read the code of one function: which modules it calls, and what else it does with them."""

from __future__ import annotations

import ast
import builtins
from collections import ChainMap
from collections.abc import Iterator, Mapping
from types import FunctionType

from torch import nn

from reparam.capture.reading.follower import Follower
from reparam.capture.reading.source import Definition, definition, parameters_of, repeats, setting
from reparam.capture.reading.values import (
    NOTHING,
    Value,
    container,
    contents,
    is_method,
    refer_to,
    union,
)

_METADATA = {"dtype", "device", "is_cuda", "requires_grad"}

_OF_CONTAINERS = {name for kind in (list, dict, set) for name in dir(kind)}


class Reader(Follower):
    """Reads the code of one function. What a name may be only grows from line to line."""

    def read(
        self, function: FunctionType, args: tuple[Value, ...], keywords: Mapping[str, Value]
    ) -> Value:
        """Read a function, and say what it may return.

        Args:
            function: The function.
            args: What its positional arguments may be.
            keywords: What its keyword arguments may be; what may be any of them under ``**``.
        """
        returned = self.notes.returned
        key = function, args, frozenset(keywords.items()), self.strict
        if key not in returned:
            returned[key] = None
            code = definition(function)
            if code is not None:
                reader = Reader(self.notes, self.strict)
                returned[key] = reader.run(function, code, args, keywords)
        value = returned[key]
        if value is None:  # no source is at hand, or it calls itself
            self.use(union((*args, *keywords.values(), refer_to(function))))
            return NOTHING
        return value

    def run(
        self,
        function: FunctionType,
        code: Definition,
        args: tuple[Value, ...],
        keywords: Mapping[str, Value],
    ) -> Value:
        """Read the code of a function until no name may be anything more."""
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        enclosing = {name: contents(cell) for name, cell in cells}
        self.outer = ChainMap(enclosing, function.__globals__, vars(builtins))
        self.code = function.__code__
        self.owner = args[0] if args else NOTHING
        self.names = dict.fromkeys(function.__code__.co_varnames, NOTHING)
        self.names |= _bind(function, args, keywords)
        self.shared: set[str] = set()
        self.returned = NOTHING
        while True:
            before = dict(self.names)
            self.block(code.body)
            if self.names == before or not repeats(code):
                return self.returned

    # -- Statements ---------------------------------------------------------------------------

    def block(self, statements: list[ast.stmt], *, runs: bool = True) -> None:
        """Read statements; those that run only if somebody asks for it are read less strictly."""
        strict = self.strict
        self.strict = strict and runs
        for statement in statements:
            self.statement(statement)
        self.strict = strict

    def statement(self, node: ast.stmt) -> None:
        """Read one statement."""
        match node:
            case ast.Return(value=ast.expr() as source):
                self.returned |= self.value(source)
            case ast.Assign(targets=targets, value=source):
                value = self.value(source)
                for target in targets:
                    self.bind(target, value)
            case ast.AnnAssign(target=target, value=ast.expr() as source):
                self.bind(target, self.value(source))
            case ast.AugAssign(target=target, value=source):
                self.use(self.value(source))
                self.bind(target, NOTHING)
            case ast.For(target=target, iter=several) | ast.AsyncFor(target=target, iter=several):
                self.loop(target, several)
                self.block(node.body + node.orelse)
            case ast.If(test=test, body=body, orelse=orelse):
                self.value(test)
                holds = self.outcome(test)
                self.block(body, runs=holds is not False)
                self.block(orelse, runs=holds is not True)
            case ast.With(items=items) | ast.AsyncWith(items=items):
                for item in items:
                    value = self.value(item.context_expr)
                    self.use(value)
                    if item.optional_vars is not None:
                        self.bind(item.optional_vars, value)
                self.block(node.body)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                returned, self.returned = self.returned, NOTHING
                self.block(node.body)
                # Whoever calls a function that is handed on uses what it returns.
                self.use(self.returned)
                self.bind(ast.Name(name), self.returned)
                self.returned = returned
            case ast.Global(names=names):
                self.shared.update(names)
            case ast.Match(subject=subject):
                self.use(self.value(subject))
                self.inside(node)
            case _:
                self.inside(node)

    def inside(self, node: ast.AST) -> None:
        """Read all statements and expressions in a piece of code."""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                self.statement(child)
            elif isinstance(child, ast.expr):
                self.value(child)
            else:
                self.inside(child)

    def outcome(self, test: ast.expr) -> bool | None:
        """Whether a test of flags holds, if they are as they are now; None if unknown."""
        match test:
            case ast.BoolOp(op=op, values=several):
                outcomes = set(map(self.outcome, several))
                decides = isinstance(op, ast.Or)
                if decides in outcomes:
                    return decides
                return None if None in outcomes else not decides
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                holds = self.outcome(operand)
                return None if holds is None else not holds
            case ast.Attribute(value=ast.Name(id=name), attr=flag):
                owners = self.names.get(name, NOTHING).itself
                modules = [owner for owner in owners if isinstance(owner, nn.Module)]
                outcomes = {setting(module, flag, self.code) for module in modules}
                agree = len(outcomes) == 1 and len(modules) == len(owners)
                return outcomes.pop() if agree else None
        return None

    # -- Assignments --------------------------------------------------------------------------

    def loop(self, target: ast.expr, several: ast.expr) -> None:
        """Add what a loop's variables may be, each of a tuple by itself."""
        match target, several:
            case ast.Tuple(elts=[_, item]), ast.Call(
                func=ast.Name(id="enumerate"), args=[inner, *_]
            ):
                self.loop(item, inner)
            case ast.Tuple(elts=items), ast.Call(func=ast.Name(id="zip"), args=inner) if len(
                items
            ) == len(inner):
                for item, part in zip(items, inner, strict=True):
                    self.loop(item, part)
            case ast.Tuple(elts=[_, item]), ast.Call(
                func=ast.Attribute(attr="items" | "named_children" | "named_modules")
            ):
                self.bind(item, self.elements(self.value(several)))
            case _:
                self.bind(target, self.elements(self.value(several)))

    def bind(self, target: ast.expr, value: Value) -> None:
        """Add what a target may be."""
        match target:
            case ast.Name(id=name):
                self.names[name] = self.names.get(name, NOTHING) | value
                if name in self.shared:
                    self.use(value)
            case ast.Tuple(elts=targets) | ast.List(elts=targets):
                for part in targets:
                    self.bind(part, self.elements(value))
            case ast.Starred(value=part):
                self.bind(part, container([value]))
            case ast.Attribute(value=base):
                self.open(*(m for m in self.value(base).itself if isinstance(m, nn.Module)))
                self.use(value)
            case _:
                self.inside(target)
                self.use(value)

    # -- Expressions --------------------------------------------------------------------------

    def value(self, node: ast.expr) -> Value:
        """What an expression may be; what it does with modules is noted."""
        match node:
            case ast.Name(id=name):
                return self.names[name] if name in self.names else self.refer(self.outer.get(name))
            case ast.Attribute(value=base, attr=name):
                return self.attribute_of(base, name)
            case ast.Subscript(value=base, slice=index):
                return self.entries(self.value(base), index)
            case ast.Call():
                return self.called(node)
            case ast.BoolOp(values=several):
                return union(map(self.value, several))
            case ast.IfExp(test=test, body=body, orelse=orelse):
                self.value(test)
                return self.value(body) | self.value(orelse)
            case ast.NamedExpr(target=target, value=source):
                self.bind(target, value := self.value(source))
                return value
            case ast.Tuple(elts=several) | ast.List(elts=several) | ast.Set(elts=several):
                return container(map(self.value, several))
            case ast.Dict(keys=keys, values=several):
                return container([self.value(part) for part in (*keys, *several) if part])
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                return self.comprehension(node)
            case ast.Starred(value=several):
                return self.elements(self.value(several))
            case ast.Lambda(body=body):
                self.use(value := self.value(body))
                return value
            case ast.BinOp(left=left, right=right):
                return Value(inside=(self.value(left) | self.value(right)).inside)
            case ast.Yield() | ast.YieldFrom() | ast.Await():
                if node.value is not None:
                    self.use(self.value(node.value))
                return NOTHING
            case _:
                self.inside(node)
                return NOTHING

    def attribute_of(self, base: ast.expr, name: str) -> Value:
        """What ``base.name`` may be."""
        match base:
            case ast.Call(func=ast.Name(id="super"), args=args):
                here = refer_to(self.outer.get("__class__")), self.owner
                kinds, owners = map(self.value, args) if len(args) == 2 else here
                return union(
                    self.attribute_of_class(getattr(owner, "__self__", owner), name, after)
                    for owner in owners.itself
                    for after in kinds.itself
                    if (isinstance(owner, nn.Module) or is_method(owner))
                    and isinstance(after, type)
                )
            case (
                ast.Call(func=ast.Name(id="next"), args=[several])
                | ast.Attribute(value=ast.Call(func=ast.Name(id="next"), args=[several]))
            ) if name in _METADATA and self.are_alike(several, name):
                return NOTHING
            case ast.Attribute(value=holder, attr=weight) if name in _METADATA:
                # Who asks for the type of a weight does not use it.
                holders = (h for h in self.value(holder).itself if not self.is_weight(h, weight))
                value = union(self.attribute(h, weight) for h in holders)
            case _:
                value = self.value(base)
        return union(self.attribute(thing, name) for thing in value.itself)

    def are_alike(self, several: ast.expr, name: str) -> bool:
        """Whether an expression gives weights, or layers, that agree in what is asked of one."""
        match several:
            case ast.GeneratorExp(generators=[ast.comprehension(iter=inner)]):
                return self.are_alike(inner, name)
            case ast.Call(func=ast.Attribute(value=holder, attr="parameters" | "modules")):
                modules = self.value(holder).modules
                tensors = [tensor for module in modules for tensor in module.parameters()]
                return len({getattr(tensor, name) for tensor in tensors}) <= 1
        return False

    def comprehension(
        self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp
    ) -> Value:
        """What a comprehension may hold."""
        for part in node.generators:
            self.loop(part.target, part.iter)
            for test in part.ifs:
                self.value(test)
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        return container(map(self.value, parts))

    def entries(self, value: Value, index: ast.expr) -> Value:
        """What ``value[index]`` may be."""
        self.value(index)
        elements = self.elements(value)
        return Value(value.itself, elements.all) if isinstance(index, ast.Slice) else elements

    # -- Calls --------------------------------------------------------------------------------

    def called(self, node: ast.Call) -> Value:
        """What a call may return."""
        args, keywords = self.arguments(node)
        match node:
            case ast.Call(func=ast.Name(id="super"), args=[]):
                self.use(self.owner)
                return NOTHING
            case ast.Call(
                func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), *_]
            ) if "**" not in keywords:
                return union((*args[2:], *(self.attribute(h, name) for h in args[0].itself)))
            case ast.Call(func=ast.Attribute(value=base, attr=name)) if name in _OF_CONTAINERS:
                holder = self.value(base)
                if holder.inside:
                    self.use(union((*args, *keywords.values())))
                    return self.call(self.value(node.func), args, keywords) | Value(
                        holder.inside, holder.inside
                    )
        return self.call(self.value(node.func), args, keywords)

    def arguments(self, node: ast.Call) -> tuple[tuple[Value, ...], dict[str, Value]]:
        """What the arguments of a call may be; those of unknown place under ``**``."""
        args: list[Value] = []
        keywords: dict[str, Value] = {}
        spread, placed = NOTHING, True
        for argument in node.args:
            placed = placed and not isinstance(argument, ast.Starred)
            if placed:
                args.append(self.value(argument))
            else:
                spread |= self.value(argument)
        for keyword in node.keywords:
            if keyword.arg is None:
                spread |= self.elements(self.value(keyword.value))
            else:
                keywords[keyword.arg] = self.value(keyword.value)
        if spread.all:
            keywords["**"] = spread
        return tuple(args), keywords


def _bind(
    function: FunctionType, args: tuple[Value, ...], keywords: Mapping[str, Value]
) -> Iterator[tuple[str, Value]]:
    """The parameters of a function and what they may be."""
    spread = keywords.get("**", NOTHING)
    for index, parameter in enumerate(parameters_of(function)):
        if parameter.kind is parameter.VAR_POSITIONAL:
            yield parameter.name, container([*args[index:], spread])
        elif parameter.kind is parameter.VAR_KEYWORD:
            yield parameter.name, container(keywords.values())
        elif index < len(args) and parameter.kind is not parameter.KEYWORD_ONLY:
            yield parameter.name, args[index]
        elif parameter.name in keywords:
            yield parameter.name, keywords[parameter.name]
        elif parameter.default is not parameter.empty:
            yield parameter.name, refer_to(parameter.default) | spread
        else:
            yield parameter.name, spread
