"""Whether what one module returns goes to the next one alone, whichever way code takes."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache, partial
from itertools import pairwise
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from reparam.capture.reading.method_names import names_in
from reparam.capture.reading.source import (
    Definition,
    definition,
    is_torchs,
    layers,
    own_methods,
    static_attribute,
)
from reparam.capture.reading.spelled_names import Spelling, spelled

_ELSEWHERE = ""
"""Stands for what is no result of a module, and for whoever is no module and takes one."""

_NESTED = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.ListComp, ast.SetComp,
    ast.DictComp, ast.GeneratorExp,
)  # fmt: skip

_SEES_MORE = {"locals", "vars", "eval", "exec", "super"}

_NAMELESS = set(
    "children named_children modules named_modules get_submodule parameters named_parameters "
    "get_parameter buffers named_buffers get_buffer state_dict apply _apply __dict__ _modules "
    "_parameters _buffers __getattr__ __getattribute__".split()
)
"""Attributes of every module that give its parts, or what they hold, without their names."""

_BINDING = ("name", "asname", "rest")
"""Fields of syntax that bind a name: patterns and imports, which hold no other names."""

Sources = frozenset[str]


def runs_as_one(module: nn.Module, method: str, names: Sequence[str]) -> bool:
    """Whether a method only calls attributes, each on nothing but the result of the one before.

    Such as ``x = self.bn(self.conv(x))``, also in branches, in loops and more than once. Then one
    operator may stand in the place of all of them: the others may become the identity.
    """
    function = own_methods(type(module)).get(method)
    flow = _flow_of(function) if function is not None else None
    if flow is None or any(
        name in flow.uses_otherwise or flow.spelled.may_be(name) for name in names
    ):
        return False
    return set(names) <= flow.takes.keys() and all(
        flow.taken_by[before] == {after} and flow.takes[after] == {before}
        for before, after in pairwise(names)
    )


def runs_by_name(module: nn.Module, names: Sequence[str]) -> bool:
    """Whether all code that a forward may run uses some parts by their names, in methods alone.

    A property, a wrapper around a method and a list of all children may give them to anybody.
    """
    kind = type(module)
    seen, pending = {"forward"}, ["forward"]
    while pending:
        name = pending.pop()
        value = static_attribute(kind, name)
        if _may_hold_the_module(vars(module).get(name)):
            return False
        functions = [f for f in layers(value) if not is_torchs(f)]
        used = set[str]().union(*map(names_in, functions))
        is_static = isinstance(value, staticmethod)
        if not is_static and not all(_keeps_to_itself(f, value, names) for f in functions):
            return False
        pending.extend(used - seen)
        seen |= used
    return seen.isdisjoint(_NAMELESS)


def hands_itself_on(module: nn.Module, method: str) -> bool:
    """Whether a method may give its module to other code, such as that of its base class."""
    flow = _flow_of(own_methods(type(module))[method])
    return flow is None or flow.spelled != Spelling()


def _keeps_to_itself(function: FunctionType, value: Any, names: Sequence[str]) -> bool:
    """Whether code of a class does not hand its module on, nor parts if it is no method."""
    flow = _flow_of(function)
    if hasattr(function, "__wrapped__") or flow is None or any(map(flow.spelled.may_be, names)):
        return False
    return isinstance(value, FunctionType) or names_in(function).isdisjoint(names)


def _may_hold_the_module(value: Any) -> bool:
    """Whether something that a module holds may run the module's parts by itself."""
    closed = isinstance(value, FunctionType) and value.__closure__ is not None
    return closed or isinstance(value, MethodType | partial)


@cache
def _flow_of(function: FunctionType) -> _Flow | None:
    code = definition(function)
    if code is None or not code.args.args:
        return None
    flow = _Flow(code)
    return flow if flow.certain else None


class _Flow:
    """Where the results of modules go in the code of one method.

    Attributes:
        takes: For each attribute that is called on one value, whose results that may be.
        taken_by: For each such attribute who takes what it returns.
        uses_otherwise: The attributes, of whatever, that are not only called like that.
        spelled: The names of those that it reads by a name that it makes.
        certain: Whether all that the code does with ``self`` can be told.
    """

    def __init__(self, code: Definition) -> None:
        self.takes: dict[str, set[str]] = defaultdict(set)
        self.taken_by: dict[str, set[str]] = defaultdict(set)
        self.uses_otherwise: set[str] = set()
        self.certain = True
        self.spelled = Spelling()
        self._code = code
        self._self = code.args.args[0].arg
        self._names: dict[str, Sources] = {}
        self._may_stop = False  # anywhere in a block, and code behind it goes on
        self._block(code.body)

    def _block(self, statements: Iterable[ast.stmt]) -> None:
        for statement in statements:
            self._statement(statement)

    def _statement(self, statement: ast.stmt) -> None:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                self._assign(name, self._value(value))
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)) if (
                len(_names_in(names)) == len(names) == len(values)
            ):
                results = [self._value(value) for value in values]
                for name, result in zip(_names_in(names), results, strict=True):
                    self._assign(name, result)
            case ast.AugAssign(target=ast.Name(id=name)):
                self._taken(self._read(name), _ELSEWHERE)
                self._use(statement.value)
                self._bind(name)
            case ast.Expr(value=value):
                self._value(value)  # whatever it returns, nobody takes it
            case ast.Delete(targets=names) if len(_names_in(names)) == len(names):
                pass
            case ast.Global() | ast.Nonlocal():
                self.certain = False
            case ast.If(test=test, body=body, orelse=orelse):
                self._use(test)
                self._either([body, orelse])
            case ast.For() | ast.AsyncFor() | ast.While():
                self._loop(statement)
            case ast.Try() | ast.TryStar():
                self._try(statement)
            case ast.With(items=items, body=body) | ast.AsyncWith(items=items, body=body):
                for item in items:
                    self._use(item)
                self._unless_stopped(body, may_stop=not all(map(_is_of_torch, items)))
            case ast.Match(subject=subject, cases=cases):
                self._use(subject)
                for case in cases:
                    self._use(case.pattern)
                self._either([*(case.body for case in cases), []])
            case _:
                self._use(statement)

    def _either(self, blocks: Iterable[Sequence[ast.stmt]]) -> None:
        """One of several blocks runs."""
        before, ends = self._names, list[dict[str, Sources]]()
        for block in blocks:
            self._names = dict(before)
            self._block(block)
            ends.append(self._names)
        self._names = _joined(ends)

    def _unless_stopped(self, block: Sequence[ast.stmt], *, may_stop: bool) -> None:
        """A block of which perhaps only a part runs: names may still hold what they held before."""
        outer, self._may_stop = self._may_stop, self._may_stop or may_stop
        self._block(block)
        self._may_stop = outer

    def _loop(self, loop: ast.For | ast.AsyncFor | ast.While) -> None:
        """A block runs any number of times: what one time leaves behind the next one reads."""
        jumps = any(isinstance(node, ast.Break | ast.Continue) for node in ast.walk(loop))
        while True:
            before = self._names
            self._names = dict(before)
            for part in (loop.test,) if isinstance(loop, ast.While) else (loop.iter, loop.target):
                self._use(part)
            self._unless_stopped(loop.body, may_stop=jumps)
            self._names = _joined([before, self._names])
            if self._names == before:
                break
        self._block(loop.orelse)

    def _try(self, statement: ast.Try | ast.TryStar) -> None:
        """A block stops anywhere, and another one goes on with what it left behind."""
        before = dict(self._names)
        self._unless_stopped([*statement.body, *statement.orelse], may_stop=True)
        self._names = _joined([before, self._names])
        for handler in statement.handlers:
            self._use(handler.type)
            self._bind_anywhere(handler.name)
        self._either([[], *(handler.body for handler in statement.handlers)])
        self._block(statement.finalbody)

    def _value(self, code: ast.expr) -> Sources:
        """Whose result an expression may be."""
        match code:
            case ast.Name(id=name, ctx=ast.Load()):
                return self._read(name)
            case ast.NamedExpr(target=ast.Name(id=name), value=value):
                sources = self._value(value)
                self._assign(name, sources)
                return sources
            case ast.IfExp(test=test, body=body, orelse=orelse):
                self._use(test)
                return self._value(body) | self._value(orelse)
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=owner), attr=name),
                args=[ast.expr() as operand],
                keywords=[],
            ) if owner == self._self and not isinstance(operand, ast.Starred):
                sources = self._value(operand)
                self.takes[name] |= sources
                self._taken(sources, name)
                return frozenset({name})
        match code:
            case ast.Call(
                func=ast.Name(id="getattr" | "setattr" | "hasattr" | "delattr"),
                args=[ast.Name(id=owner), attribute, *rest],
                keywords=[],
            ) if owner == self._self:
                self._use_named(attribute, rest)
            case _:
                self._use_inside(code)
        return frozenset({_ELSEWHERE})

    def _use(self, code: ast.AST | None) -> None:
        """Code takes its value, whatever it does with it."""
        if isinstance(code, ast.expr):
            self._taken(self._value(code), _ELSEWHERE)
        elif code is not None:
            self._use_inside(code)

    def _use_named(self, attribute: ast.expr, rest: Iterable[ast.expr]) -> None:
        """Code reads, or sets, an attribute of ``self`` whose name it makes."""
        names = spelled(attribute, self._code)
        self.certain &= names is not None
        self.spelled |= names or Spelling()
        for value in rest:
            self._use(value)

    def _use_inside(self, code: ast.AST) -> None:
        """Code does something with the values in it."""
        match code:
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner == self._self:
                self.uses_otherwise.add(name)
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                self._bind(name)
            case _ if isinstance(code, _NESTED):
                self._use_nested(code)
                self._bind(getattr(code, "name", None))
            case _:
                for field in _BINDING:
                    self._bind(getattr(code, field, None))
                if isinstance(code, ast.Attribute):
                    self.uses_otherwise.add(code.attr)
                for part in ast.iter_child_nodes(code):
                    self._use(part)

    def _use_nested(self, code: ast.AST) -> None:
        """Code of its own runs some time, or never: it may read any name that it has."""
        for node in ast.walk(code):
            if isinstance(node, ast.Attribute):
                self.uses_otherwise.add(node.attr)
            elif isinstance(node, ast.NamedExpr | ast.Nonlocal | ast.Global):
                self.certain = False
        owners = {node.value for node in ast.walk(code) if isinstance(node, ast.Attribute)}
        for node in ast.walk(code):
            if isinstance(node, ast.Name) and not (node.id == self._self and node in owners):
                self._taken(self._read(node.id), _ELSEWHERE)

    def _read(self, name: str) -> Sources:
        """What a name may hold; code that names ``self`` itself may do anything with it."""
        if name in _SEES_MORE or name == self._self:
            self.certain = False
        return self._names.get(name, frozenset({_ELSEWHERE}))

    def _bind(self, name: str | None) -> None:
        """A name holds something else from now on."""
        if name is not None:
            self._assign(name, frozenset({_ELSEWHERE}))

    def _bind_anywhere(self, name: str | None) -> None:
        """A name may hold something else from now on."""
        if name is not None:
            self._assign(name, self._read(name) | {_ELSEWHERE})

    def _assign(self, name: str, sources: Sources) -> None:
        if name == self._self:
            self.certain = False
        self._names[name] = sources | (self._read(name) if self._may_stop else frozenset())

    def _taken(self, sources: Iterable[str], taker: str) -> None:
        for source in sources:
            self.taken_by[source].add(taker)


def _joined(ends: Sequence[dict[str, Sources]]) -> dict[str, Sources]:
    """What names may hold where several ways meet."""
    names = dict.fromkeys(name for end in ends for name in end)
    unset = frozenset({_ELSEWHERE})
    values = {name: [end.get(name, unset) for end in ends] for name in names}
    return {name: frozenset[str]().union(*held) for name, held in values.items()}


def _names_in(targets: Iterable[ast.expr]) -> list[str]:
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _is_of_torch(item: ast.withitem) -> bool:
    """Whether a context is such as ``torch.no_grad()``, which catches nothing."""
    match item.context_expr:
        case ast.Call(func=ast.Attribute() as kind):
            return ast.unparse(kind).startswith("torch.")
    return False
