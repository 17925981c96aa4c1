"""What becomes of modules in code that is read: their attributes, their entries, their calls."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reparam.capture.reading.source import methods, static_attribute
from reparam.capture.reading.values import (
    NOTHING,
    Value,
    carried,
    container,
    entries_of,
    is_method,
    is_registry,
    refer_to,
    union,
)

RUNS = ("forward", "__call__")

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

_PARTS = {"children", "named_children", "modules", "named_modules"}

_LEAVES_AS_IT_IS = {"train", "eval", "requires_grad_", "extra_repr", "_get_name", "__init__"}

_ASKS = {isinstance, hasattr, len, type, id, print, repr, str, bool, callable, any, all}

_ASKS_KIND = {isinstance, hasattr, type}

_REARRANGES = {enumerate, zip, reversed, list, tuple, iter, sorted, next, set, dict}

_LENIENT = {enumerate, zip, next}


@dataclass(eq=False)
class Notes:
    """How code uses modules.

    Args:
        trusting: Whether a function that nobody can follow takes modules as a whole.
        called: The modules that it calls, by identity.
        opened: Identities of the modules of which it uses what is inside.
        asked: Identities of the modules of which it asks of what kind they are.
        inspected: Identities of the modules of which it reads an attribute.
        returned: What each function that was read returns; None while it is read.
        followed: Identities of the modules whose own code was read.
        handed_on: The methods that somebody may call who cannot be followed.
    """

    trusting: bool = False
    called: dict[int, nn.Module] = field(default_factory=dict)
    opened: set[int] = field(default_factory=set)
    asked: set[int] = field(default_factory=set)
    inspected: set[int] = field(default_factory=set)
    returned: dict[Any, Value | None] = field(default_factory=dict)
    followed: set[int] = field(default_factory=set)
    handed_on: set[MethodType] = field(default_factory=set)


class Follower(ABC):
    """Follows values that may be modules.

    Args:
        notes: Takes what is found.
        strict: Whether the model runs the code. If not, only what it calls is noted.
    """

    def __init__(self, notes: Notes, strict: bool) -> None:
        self.notes = notes
        self.strict = strict

    @abstractmethod
    def read(
        self, function: FunctionType, args: tuple[Value, ...], keywords: Mapping[str, Value]
    ) -> Value:
        """Read a function, and say what it may return."""

    # -- Notes --------------------------------------------------------------------------------

    def open(self, *modules: nn.Module) -> None:
        """Note that what is inside some modules is used."""
        if self.strict:
            self.notes.opened.update(map(id, modules))

    def ask(self, value: Value, kinds: Value = NOTHING) -> None:
        """Note that it is asked of what kind a value is: perhaps whether of one of some classes."""
        if not self.strict:
            return
        classes = tuple(kind for kind in kinds.all if isinstance(kind, type))
        # Of an operator that goes an identity is left.
        tells_all = not classes or issubclass(nn.Identity, classes)
        for module in value.itself:
            told = tells_all or isinstance(module, classes)
            if isinstance(module, nn.Module) and told and nn.Module not in classes:
                self.notes.asked.add(id(module))

    def use(self, value: Value) -> None:
        """Note that what a value leads to may be used in any way."""
        if not self.strict:
            return
        for thing in value.all:
            if is_method(thing):
                if thing not in self.notes.handed_on:
                    self.notes.handed_on.add(thing)
                    self.use(self.call_method(thing.__self__, thing.__func__, (), {}))
            elif not self.notes.trusting:
                for module in carried(thing):
                    self.open(*module.modules())

    # -- Attributes ---------------------------------------------------------------------------

    def refer(self, thing: Any) -> Value:
        """A Python object as a value; who meets one of an unknown kind uses the modules in it."""
        value = refer_to(thing)
        if value is NOTHING and self.strict:
            self.use(container(map(refer_to, carried(thing))))
        return value

    def attribute(self, thing: Any, name: str) -> Value:
        """What ``thing.name`` may be."""
        if isinstance(thing, nn.Module):
            if name in RUNS:
                return refer_to(MethodType(nn.Module.__call__, thing))
            if self.strict:
                self.notes.inspected.add(id(thing))
            if name == "__class__":
                self.ask(refer_to(thing))
            if self.is_weight(thing, name):
                self.open(thing)
                return NOTHING
            for held in (thing._modules, vars(thing)):
                if name in held:
                    value = self.refer(held[name])
                    if value.modules:
                        self.open(thing)
                    return value
            return self.attribute_of_class(thing, name)
        if isinstance(thing, ModuleType | type):
            return self.refer(static_attribute(thing, name))
        if is_registry(holder := getattr(thing, "__self__", None)):
            own = getattr(holder, "__dict__", {}).get(name)
            return self.attribute_of_class(holder, name) if own is None else self.refer(own)
        self.use(refer_to(thing))
        return NOTHING

    def is_weight(self, thing: Any, name: str) -> bool:
        """Whether an attribute is a tensor of a module, or holds some."""
        if not isinstance(thing, nn.Module):
            return False
        own = name in thing._parameters or name in thing._buffers
        return own or any(isinstance(e, Tensor) for e in entries_of(vars(thing).get(name)))

    def attribute_of_class(self, thing: Any, name: str, after: type | None = None) -> Value:
        """What an attribute that a module or a registry has from its class may be.

        Args:
            thing: The module or the registry.
            name: The attribute's name.
            after: The class after which it is searched, as ``super`` does.
        """
        itself, kind = refer_to(thing), type(thing)
        attribute = static_attribute(kind, name, after)
        match attribute:
            case (
                property(fget=FunctionType() as getter)
                | cached_property(func=FunctionType() as getter)
            ):
                return self.read(getter, (itself,), {})
            case staticmethod():
                return refer_to(inspect.unwrap(attribute))
            case classmethod(__func__=FunctionType() as getter):
                return refer_to(MethodType(getter, thing))  # it has what its class has
        if name == "__dict__" or (attribute is None and "__getattr__" in methods(kind)):
            self.use(itself)
        function = inspect.unwrap(attribute) if callable(attribute) else None
        if isinstance(function, FunctionType):
            return refer_to(MethodType(function, thing))
        return self.refer(attribute)

    # -- Entries ------------------------------------------------------------------------------

    def elements(self, value: Value) -> Value:
        """What iterating over a value may give."""
        result = Value(value.inside, value.inside)
        for thing in value.itself:
            if is_plain_container(thing):
                self.open(thing)
                result |= Value(frozenset(thing.children()))
            elif is_method(thing):
                result |= self.call_method(thing.__self__, thing.__func__, (), {})
            elif hasattr(type(thing), "__iter__") or hasattr(type(thing), "__getitem__"):
                self.use(refer_to(thing))
        return result

    # -- Calls --------------------------------------------------------------------------------

    def call(self, value: Value, args: tuple[Value, ...], keywords: Mapping[str, Value]) -> Value:
        """What calling a value may return."""
        given = union((*args, *keywords.values()))
        result = NOTHING
        for thing in value.itself:
            if is_method(thing):
                result |= self.call_method(thing.__self__, thing.__func__, args, keywords)
            elif not isinstance(thing, nn.Module):
                result |= self.call_function(thing, args, keywords)
        modules = [thing for thing in value.all if isinstance(thing, nn.Module)]
        for module in modules:
            self.notes.called[id(module)] = module
        if modules or not value.all:
            self.use(given)
        return result

    def call_method(
        self, module: Any, function: Any, args: tuple[Value, ...], keywords: Mapping[str, Value]
    ) -> Value:
        """What a method of a module, or of a registry, may return."""
        name = function.__name__
        if function is nn.Module.__call__:
            return self.call(refer_to(module), args, keywords)
        frozen = function.__module__ == "collections.abc"  # Python's own, without its source
        if not frozen and vars(nn.Module).get(name) is not function:
            self.open(module)
            return self.read(function, (refer_to(module), *args), keywords)
        given = union((*args, *keywords.values()))
        self.use(given)
        if frozen:
            entries = (self.elements(refer_to(module)) | given).all
            return Value(entries, entries)
        if name in _PARTS and not self.notes.trusting:
            deep = name.endswith("modules")
            parts = list(module.modules() if deep else module.children())
            self.open(*parts if deep else [module])
            return Value(inside=frozenset(parts))
        if name not in _PARTS | _LEAVES_AS_IT_IS:
            self.use(refer_to(module))
            if self.strict:  # ``parameters()``, say
                self.notes.inspected.update(map(id, module.modules()))
        return Value(frozenset(module.modules())) if name == "get_submodule" else NOTHING

    def call_function(
        self, function: Any, args: tuple[Value, ...], keywords: Mapping[str, Value]
    ) -> Value:
        """What a function or a class that is no part of a model may return."""
        given = union((*args, *keywords.values()))
        if function in _ASKS_KIND and args:
            self.ask(args[0], args[1] if function is isinstance else NOTHING)
        if function in _ASKS or not (given.modules or carried(function)):
            return NOTHING
        if function in _REARRANGES and (len(args) + len(keywords) == 1 or function in _LENIENT):
            entries = union(map(self.elements, (given,) if function is dict else args))
            return entries if function is next else container([entries])
        if function is getattr:
            return union((*args[1:], *map(self.any_part, args[0].itself)))
        if function is checkpoint:
            self.use(union(args[1:]))
            return self.call(args[0], (), {})
        if isinstance(function, type):
            function, args = vars(function).get("__init__"), (NOTHING, *args)
        foreign = str(getattr(function, "__module__", "torch.")).startswith("torch.")
        if isinstance(function, FunctionType) and not foreign and self.strict:
            return self.read(inspect.unwrap(function), args, keywords)
        self.use(given)
        self.use(refer_to(function))
        return NOTHING

    def any_part(self, thing: Any) -> Value:
        """What an attribute of an unknown name may be."""
        if not isinstance(thing, nn.Module):
            self.use(refer_to(thing))
            return NOTHING
        self.open(thing)
        return Value(frozenset(thing.children()))


def is_plain_container(value: Any) -> bool:
    """Whether a module is a container that is read as torch's own are."""
    return any(
        isinstance(value, kind)
        and type(value).__iter__ is kind.__iter__
        and type(value).__getitem__ is kind.__getitem__
        for kind in _CONTAINERS
    )
