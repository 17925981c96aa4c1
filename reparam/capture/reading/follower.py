"""What becomes of modules in code that is read: their attributes, their entries, their calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType, ModuleType
from typing import Any, Protocol

from torch import nn
from torch.utils.checkpoint import checkpoint

from reparam.capture.reading.source import methods, static_attribute
from reparam.capture.reading.values import (
    NOTHING,
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
    modules_in,
    refer_to,
    row,
    union,
)

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

RUNS = ("forward", "__call__")

_PARTS = ("children", "named_children", "modules", "named_modules")

_TENSORS = ("parameters", "named_parameters", "buffers", "named_buffers", "state_dict")

_METADATA = {"dtype", "device", "is_cuda", "requires_grad"}

_LEAVES_AS_IT_IS = {"train", "eval", "requires_grad_", "extra_repr", "_get_name", "__init__"}

_ASKS = {isinstance, hasattr, len, type, id, print, repr, str, bool, callable, any, all}

_REARRANGES = {enumerate, zip, reversed, list, tuple, iter, sorted, next, set, dict, filter}


class Notes(Protocol):
    """Takes down how code uses modules, and has other code read.

    Args:
        called: The modules that it calls, by identity.
        opened: Identities of the modules of which it uses what is inside.
        trusting: Whether a function that nobody can follow takes modules as a whole.
    """

    called: dict[int, nn.Module]
    opened: set[int]
    trusting: bool

    def remember(self) -> Callable[[], None]:
        """Take down what is noted so far; calling the result forgets all that came after."""

    def use(self, values: Values) -> None:
        """Note that what some values lead to may be used in any way."""

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
        """Read a method of a module, and say what it may return."""

    def read(
        self,
        function: FunctionType,
        args: tuple[Values, ...],
        keywords: Mapping[str, Values],
        strict: bool,
    ) -> Values:
        """Read a function, and say what it may return."""


class Follower:
    """Follows values that may be modules.

    Args:
        reach: Takes what is found.
        strict: Whether the model runs the code. If not, only what it calls is noted.
    """

    def __init__(self, reach: Notes, strict: bool) -> None:
        self.reach = reach
        self.strict = strict

    def use(self, values: Values) -> None:
        """Note that what some values lead to may be used in any way."""
        if self.strict:
            self.reach.use(values)

    def open(self, module: nn.Module) -> None:
        """Note that what is inside a module is used."""
        if self.strict:
            self.reach.opened.add(id(module))

    def attribute(self, value: Any, name: str) -> Values:
        """What ``value.name`` may be."""
        if isinstance(value, nn.Module):
            return self.attribute_of_module(value, name)
        if isinstance(value, Outside) and isinstance(value.value, ModuleType | type):
            return refer_to(static_attribute(value.value, name))
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
        """What an attribute of a module may be."""
        if name in module._parameters or name in module._buffers:
            return frozenset([TensorsOf(module)])
        if name in module._modules or name in vars(module):
            values = refer_to(module._modules.get(name, vars(module).get(name)), module)
            if modules_in(values):
                self.open(module)
            return values
        found = static_attribute(type(module), name)
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

    def elements(self, values: Values) -> Values:
        """What iterating over values may give."""
        return union(map(self.elements_of, values))

    def elements_of(self, value: Any) -> Values:
        """What iterating over one value may give."""
        if isinstance(value, Several):
            return value.entries | {value} if value.nested else value.entries
        if isinstance(value, Row):
            return union(value.places)
        if isinstance(value, Registry):
            return value.functions if value.hands_out("__getitem__") else NOTHING
        if is_plain_container(value):
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
        """What a method of a module may return."""
        owner, name = method.owner, method.name
        if name in RUNS and method.after is None:
            self.reach.called[id(owner)] = owner
        elif is_plain_container(owner) and name in ("items", "values"):
            return _taken_from(Several(self.elements_of(owner)), name)
        elif name in methods(type(owner), method.after):
            return self.reach.run(
                owner, name, args, keywords, after=method.after, strict=self.strict
            )
        elif name in _PARTS:
            if not self.reach.trusting:
                deep = name.endswith("modules")
                parts = [*(owner.modules() if deep else owner.children())]
                for holder in parts if deep else [owner]:
                    self.open(holder)
                listed = "items" if name.startswith("named") else "values"
                return _taken_from(Several(frozenset(parts)), listed)
        elif name == "get_submodule" and args:
            return self.called_get_submodule(owner, args[0])
        elif name in _TENSORS:
            if self.reach.trusting:
                return NOTHING
            return container(frozenset(map(TensorsOf, owner.modules())))
        elif name not in _LEAVES_AS_IT_IS and name not in RUNS:
            self.use(frozenset([owner]))
        self.use(union((*args, *keywords.values())))
        return NOTHING

    def called_outside(
        self, function: Any, args: tuple[Values, ...], keywords: dict[str, Values]
    ) -> Values:
        """What a function or a class that is no part of a model may return."""
        given = modules_in(union((*args, *keywords.values())))
        known = constant(args[0]) if len(args) == 1 else None
        if function is bool and known is not None:
            return frozenset([Known(bool(known.value))])
        if not given or _is_one_of(function, _ASKS):
            if _is_one_of(function, {len, any, all}):
                self.use(weights_in(given))
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
        return self.called_code(function, args, keywords, given)

    def called_code(
        self, function: Any, args: tuple[Values, ...], keywords: dict[str, Values], given: Values
    ) -> Values:
        """What code that is given modules may return: read, if it is not torch's own."""
        if isinstance(function, type):
            function, args = vars(function).get("__init__"), (NOTHING, *args)
        own = isinstance(function, FunctionType) and not str(function.__module__).startswith(
            "torch."
        )
        if own and self.strict:
            return self.reach.read(inspect.unwrap(function), args, keywords, self.strict)
        self.use(given)
        return NOTHING

    def called_get_submodule(self, owner: nn.Module, path: Values) -> Values:
        """What ``get_submodule`` may return."""
        known = constant(path)
        parts = dict(owner.named_modules())
        if known is not None and known.value in parts:
            self.open(owner)
            return frozenset([parts[known.value]])
        self.use(frozenset([owner]))
        return frozenset(parts.values())

    def called_getattr(self, args: tuple[Values, ...]) -> Values:
        """What ``getattr`` may return."""
        key = constant(args[1]) if len(args) > 1 else None
        default = union(args[2:])
        if key is not None and isinstance(key.value, str):
            return default | union(self.attribute(value, key.value) for value in args[0])
        modules = [value for value in args[0] if isinstance(value, nn.Module)]
        self.use(modules_in(args[0] - frozenset(modules)))
        for module in modules:
            self.open(module)
        return default | frozenset(child for module in modules for child in module.children())


def _taken_from(owner: Several | Row, method: str) -> Values:
    """What a method of a container may return."""
    entries = owner.entries if isinstance(owner, Several) else union(owner.places)
    if method == "items":
        return container(row((NOTHING, entries)))
    return container(entries) | (NOTHING if method == "values" else entries)


def weights_in(values: Values) -> Values:
    """The weights among some values, in containers too."""
    flat = union(
        value.entries if isinstance(value, Several) else frozenset([value]) for value in values
    )
    return frozenset(value for value in flat if isinstance(value, TensorsOf))


def is_plain_container(value: Any) -> bool:
    """Whether a module is a container that is read as torch's own are."""
    return any(
        isinstance(value, kind)
        and type(value).__iter__ is kind.__iter__
        and type(value).__getitem__ is kind.__getitem__
        for kind in _CONTAINERS
    )


def _is_one_of(function: Any, functions: set[Any]) -> bool:
    return any(function is known for known in functions)
