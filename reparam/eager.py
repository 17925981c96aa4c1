"""What the code of a module that was not traced does with the modules below it.

The code is read, never run. Inside a module that such code only calls, operators may be fused. What
it uses in another way stays as it is: a block of which it runs one layer, a weight that it reads.
"""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Iterator, Mapping
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from reparam.references import (
    NOTHING,
    Carrier,
    Known,
    Method,
    Outside,
    Registry,
    Row,
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
from reparam.source import Definition, definition, methods

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_RUNS = ("forward", "__call__")
_PARTS = ("children", "named_children", "modules", "named_modules")
_TENSORS = ("parameters", "named_parameters", "buffers", "named_buffers", "state_dict")
_METADATA = {"dtype", "device", "is_cuda", "requires_grad"}
_LEAVES_AS_IT_IS = {"train", "eval", "requires_grad_", "extra_repr", "_get_name", "__init__"}
_ASKS = {isinstance, hasattr, len, type, id, print, repr, str, bool, callable, any, all}
_REARRANGES = {enumerate, zip, reversed, list, tuple, iter, sorted, next, set, dict, filter}


class Reach:
    """How code that was not traced uses the modules of a model.

    Args:
        called: The modules that it calls, by identity.
        opened: Identities of the modules of which it uses what is inside.
        trusting: Whether a function that nobody can follow takes modules as a whole.
    """

    def __init__(self, *, trusting: bool = False) -> None:
        self.trusting = trusting
        self.called: dict[int, nn.Module] = {}
        self.opened: set[int] = set()
        self._read: dict[Any, Values] = {}

    def only_called(self) -> list[nn.Module]:
        """The modules that are called, and nothing else is done with them."""
        return [module for key, module in self.called.items() if key not in self.opened]

    def follow(self, module: nn.Module) -> None:
        """Read the code of a module that stays as it is, and of what that code runs.

        Args:
            module: The module.
        """
        self.opened.add(id(module))
        if "forward" in vars(module):
            self.use(refer_to(vars(module)["forward"]))
        defined = methods(type(module))
        for name in _RUNS:
            if name in defined:
                self.run(module, name)
        # A user may call the others, but they do not decide how the model runs.
        for name in defined:
            if name not in _RUNS:
                self.run(module, name, strict=False)

    def use(self, values: Values) -> None:
        """Note that what some values lead to may be used in any way."""
        for value in values:
            if isinstance(value, nn.Module):
                if not self.trusting:
                    self.opened.update(id(module) for module in value.modules())
            elif isinstance(value, TensorsOf):
                self.opened.add(id(value.owner))
            elif isinstance(value, Several | Carrier):
                self.use(value.entries)
            elif isinstance(value, Row):
                self.use(union(value.places))
            elif isinstance(value, Super):
                self.use(frozenset([value.owner]))
            elif isinstance(value, Method) and isinstance(value.owner, nn.Module):
                if value.name in methods(type(value.owner), value.after):
                    self.run(value.owner, value.name, after=value.after)
                elif value.name in _RUNS:
                    self.called[id(value.owner)] = value.owner
                else:
                    self.use(frozenset([value.owner]))
            elif isinstance(value, Method):
                self.use(frozenset([value.owner]))

    def run(
        self,
        module: nn.Module,
        name: str,
        args: tuple[Values, ...] = (),
        keywords: Mapping[str, Values] | None = None,
        *,
        after: type | None = None,
        strict: bool = True,
    ) -> Values:
        """Read a method of a module, and say what it may return.

        Args:
            module: The module.
            name: The method's name.
            args: What its positional arguments may be.
            keywords: What its keyword arguments may be.
            after: Search the classes after this one only.
            strict: Whether the model runs it, or only a user who asks for it.
        """
        if strict:
            self.opened.add(id(module))
        function = methods(type(module), after)[name]
        return self.read(function, (frozenset([module]), *args), keywords or {}, strict)

    def read(
        self,
        function: FunctionType,
        args: tuple[Values, ...],
        keywords: Mapping[str, Values],
        strict: bool,
    ) -> Values:
        """Read a function, and say what it may return."""
        key = function, args, frozenset(keywords.items()), strict
        if key not in self._read:
            self._read[key] = NOTHING
            found = definition(function)
            if found is None and strict:
                self.use(union((*args, *keywords.values())))
            elif found is not None:
                reader = _Reader(self, function, found, args, keywords, strict)
                self._read[key] = reader.read()
        return self._read[key]


class _Reader:
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
        reach: Reach,
        function: FunctionType,
        node: Definition,
        args: tuple[Values, ...],
        keywords: Mapping[str, Values],
        strict: bool,
    ) -> None:
        self.reach = reach
        self.node = node
        self.strict = strict
        self.returned = NOTHING
        self.outer = dict(function.__globals__)
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        self.outer.update((name, contents(cell)) for name, cell in cells)
        self.names: dict[str, Values] = dict(_bind(function, args, keywords))

    def read(self) -> Values:
        for _ in range(4):  # a loop reads above what it assigns below
            before = dict(self.names)
            for statement in self.node.body:
                self.statement(statement)
            if self.names == before:
                break
        return self.returned

    def use(self, values: Values) -> None:
        if self.strict:
            self.reach.use(values)

    def open(self, module: nn.Module) -> None:
        if self.strict:
            self.reach.opened.add(id(module))

    # -- Statements ---------------------------------------------------------------------------

    def statement(self, node: ast.stmt) -> None:
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
                self.use(_tensors(self.value(child)))
            else:
                self.inside(child)

    def assign(self, target: ast.expr, values: Values, source: ast.expr | None = None) -> None:
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
                return refer_to(self.outer.get(name, getattr(builtins, name, None)))
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
                self.use(_tensors(values))
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
                reach = self.reach
                before = set(reach.opened), dict(reach.called), dict(reach._read)
                values = self.value(node)
                found = [value.owner for value in values if isinstance(value, TensorsOf)]
                tensors = [tensor for owner in found for tensor in owner._parameters.values()]
                types = {tensor.dtype for tensor in tensors if tensor is not None}
                if len(found) == len(values) and len(types) == 1:
                    reach.opened, reach.called, reach._read = before
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

    def attribute(self, value: Any, name: str) -> Values:
        """What ``value.name`` may be."""
        if isinstance(value, nn.Module):
            return self.attribute_of_module(value, name)
        if isinstance(value, Outside) and isinstance(value.value, ModuleType | type):
            return refer_to(inspect.getattr_static(value.value, name, None))
        if isinstance(value, Super):
            return frozenset([Method(value.owner, name, value.after)])
        if name in _METADATA and isinstance(value, TensorsOf | Several):
            return NOTHING
        if isinstance(value, Several | Row | Registry):
            return frozenset([Method(value, name)])
        if isinstance(value, TensorsOf):
            return frozenset([value])
        self.use(modules_in(frozenset([value])))
        return NOTHING

    def attribute_of_module(self, module: nn.Module, name: str) -> Values:
        if name in module._parameters or name in module._buffers:
            return frozenset([TensorsOf(module)])
        if name in module._modules or name in vars(module):
            values = refer_to(module._modules.get(name, vars(module).get(name)), module)
            if modules_in(values):
                self.open(module)
            return values
        found = inspect.getattr_static(type(module), name, None)
        if isinstance(found, property):
            if isinstance(found.fget, FunctionType):
                return self.reach.read(found.fget, (frozenset([module]),), {}, self.strict)
            return NOTHING
        if isinstance(found, nn.Module):
            return frozenset([found])
        if name == "__dict__" or (found is None and "__getattr__" in methods(type(module))):
            self.use(frozenset([module]))
        is_method = callable(found) or isinstance(found, classmethod | staticmethod)
        return frozenset([Method(module, name)]) if is_method else NOTHING

    def each(self, several: ast.expr) -> Values:
        """What a loop may meet; who loops over weights may count them, and so uses them."""
        found = self.elements(self.value(several))
        self.use(_tensors(found))
        return found

    def elements(self, values: Values) -> Values:
        """What iterating over values may give."""
        return union(map(self.elements_of, values))

    def elements_of(self, value: Any) -> Values:
        if isinstance(value, Several):
            return value.entries | {value} if value.nested else value.entries
        if isinstance(value, Row):
            return union(value.places)
        if isinstance(value, Registry):
            return value.functions if value.hands_out("__getitem__") else NOTHING
        if _is_plain_container(value):
            self.open(value)
            return frozenset(value.children())
        if isinstance(value, TensorsOf):
            return frozenset([value])
        self.use(modules_in(frozenset([value])))
        return NOTHING

    def place(self, values: Values, index: int, count: int) -> Values:
        """What one of the targets of ``a, b = values`` may be."""
        rows = [value for value in values if isinstance(value, Row) and len(value.places) == count]
        exact = union(value.places[index] for value in rows)
        return exact | self.elements(values - frozenset(rows))

    def entries(self, values: Values, index: ast.expr) -> Values:
        """What ``values[index]`` may be."""
        found = self.elements(values)
        if isinstance(index, ast.Slice):
            return container(found)
        key = constant(self.value(index))
        if key is None or not all(map(_is_plain_container, values)):
            return found
        try:
            return frozenset(value[key.value] for value in values)
        except (KeyError, IndexError, TypeError):
            return found

    # -- Calls --------------------------------------------------------------------------------

    def call(self, node: ast.Call) -> Values:
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
        if len(args) == 2:
            kinds = [value.value for value in args[0] if isinstance(value, Outside)]
            owners = args[1]
        else:
            kinds = [self.outer.get("__class__")]
            parameters = [*self.node.args.posonlyargs, *self.node.args.args]
            owners = self.names[parameters[0].arg] if parameters else NOTHING
        modules = [owner for owner in owners if isinstance(owner, nn.Module)]
        return frozenset(Super(owner, kind) for kind in kinds if kind for owner in modules)

    def called(self, value: Any, args: tuple[Values, ...], keywords: dict[str, Values]) -> Values:
        """What calling a value may return."""
        given = union((*args, *keywords.values()))
        if isinstance(value, nn.Module):
            self.reach.called[id(value)] = value
        elif isinstance(value, Method) and isinstance(value.owner, Several | Row):
            if value.name not in ("append", "extend", "insert", "add", "update"):
                return _taken_from(value.owner, value.name)
        elif isinstance(value, Method) and isinstance(value.owner, Registry):
            self.use(given)
            defaults = (one for one in given if isinstance(one, Outside))
            known = value.owner.hands_out(value.name)
            return value.owner.functions.union(defaults) if known else NOTHING
        elif isinstance(value, Method):
            return self.called_method(value, args, keywords)
        elif isinstance(value, Outside):
            return self.called_outside(value.value, args, keywords)
        elif isinstance(value, Several):  # a slice of an nn.Sequential
            for module in value.entries:
                if isinstance(module, nn.Module):
                    self.reach.called[id(module)] = module
        elif not isinstance(value, Row):
            self.use(modules_in(frozenset([value])))
        self.use(given)
        return NOTHING

    def called_method(
        self, method: Method, args: tuple[Values, ...], keywords: dict[str, Values]
    ) -> Values:
        owner, name = method.owner, method.name
        if name in _RUNS and method.after is None:
            self.reach.called[id(owner)] = owner
        elif _is_plain_container(owner) and name in ("items", "values"):
            return _taken_from(Several(self.elements_of(owner)), name)
        elif name in methods(type(owner), method.after):
            return self.reach.run(
                owner, name, args, keywords, after=method.after, strict=self.strict
            )
        elif name in _PARTS:
            if self.strict and not self.reach.trusting:
                deep = name.endswith("modules")
                parts = [*(owner.modules() if deep else owner.children())]
                for holder in parts if deep else [owner]:
                    self.open(holder)
                listed = "items" if name.startswith("named") else "values"
                return _taken_from(Several(frozenset(parts)), listed)
        elif name in _TENSORS:
            if self.reach.trusting:
                return NOTHING
            return container(frozenset(map(TensorsOf, owner.modules())))
        elif name not in _LEAVES_AS_IT_IS and name not in _RUNS:
            self.use(frozenset([owner]))
        self.use(union((*args, *keywords.values())))
        return NOTHING

    def called_outside(
        self, function: Any, args: tuple[Values, ...], keywords: dict[str, Values]
    ) -> Values:
        given = modules_in(union((*args, *keywords.values())))
        known = constant(args[0]) if len(args) == 1 else None
        if function is bool and known is not None:
            return frozenset([Known(bool(known.value))])
        if not given or _is_one_of(function, _ASKS):
            if _is_one_of(function, {len, any, all}):
                self.use(_tensors(given))
            return NOTHING
        if function is enumerate:
            return container(row((NOTHING, self.elements(args[0]))))
        if function is zip and "**" not in keywords:
            return container(row(tuple(map(self.elements, args))))
        # A function to sort or filter by uses what it is given.
        plain = function is next or len(args) + len(keywords) == 1
        if plain and _is_one_of(function, _REARRANGES):
            found = self.elements(given)
            return found if function is next else container(found)
        if function is getattr:
            return self.called_getattr(args)
        if function is checkpoint:
            self.use(union(args[1:]))
            return union(self.called(value, (), {}) for value in union(args[:1]))
        if function is partial and not modules_in(union((*args[1:], *keywords.values()))):
            return args[0]
        if isinstance(function, type):
            function, args = vars(function).get("__init__"), (NOTHING, *args)
        own = isinstance(function, FunctionType) and not function.__module__.startswith("torch.")
        if own and self.strict:
            return self.reach.read(inspect.unwrap(function), args, keywords, self.strict)
        self.use(given)
        return NOTHING

    def called_getattr(self, args: tuple[Values, ...]) -> Values:
        key = constant(args[1]) if len(args) > 1 else None
        default = union(args[2:])
        if key is not None and isinstance(key.value, str):
            return default | union(self.attribute(value, key.value) for value in args[0])
        modules = [value for value in args[0] if isinstance(value, nn.Module)]
        self.use(modules_in(args[0] - frozenset(modules)))
        for module in modules:
            self.open(module)
        return default | frozenset(child for module in modules for child in module.children())


def _bind(
    function: FunctionType, args: tuple[Values, ...], keywords: Mapping[str, Values]
) -> Iterator[tuple[str, Values]]:
    """The parameters of a function and what they may be."""
    spread = keywords.get("**", NOTHING)
    for index, parameter in enumerate(inspect.signature(function).parameters.values()):
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


def _taken_from(owner: Several | Row, method: str) -> Values:
    """What a method of a container may return."""
    entries = owner.entries if isinstance(owner, Several) else union(owner.places)
    if method == "items":
        return container(row((NOTHING, entries)))
    return container(entries) | (NOTHING if method == "values" else entries)


def _decided(op: ast.boolop, several: list[Values]) -> Values:
    """What ``and`` or ``or`` of expressions may be."""
    ends = not isinstance(op, ast.And)
    for values in several:
        known = constant(values)
        if known is not None and bool(known.value) == ends:
            return frozenset([known])
    return union(several)


def _tensors(values: Values) -> Values:
    """The weights among some values, in containers too."""
    flat = union(
        value.entries if isinstance(value, Several) else frozenset([value]) for value in values
    )
    return frozenset(value for value in flat if isinstance(value, TensorsOf))


def _is_plain_container(value: Any) -> bool:
    """Whether a module is a container that is read as torch's own are."""
    return any(
        isinstance(value, kind)
        and type(value).__iter__ is kind.__iter__
        and type(value).__getitem__ is kind.__getitem__
        for kind in _CONTAINERS
    )


def _is_one_of(function: Any, functions: set[Any]) -> bool:
    return any(function is known for known in functions)
