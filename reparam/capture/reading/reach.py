"""What the code of a module that was not traced does with the modules below it.

The code is read, never run. Inside a module that such code only calls, operators may be fused. What
it uses in another way stays as it is: a block of which it runs one layer, a weight that it reads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

from torch import nn

from reparam.capture.reading.call_sites import CallSites
from reparam.capture.reading.follower import RUNS
from reparam.capture.reading.reader import Reader
from reparam.capture.reading.source import definition, methods, public_methods, static_attribute
from reparam.capture.reading.values import (
    NOTHING,
    Carrier,
    Method,
    Row,
    Several,
    Super,
    TensorsOf,
    Values,
    refer_to,
    union,
)


def called_by_methods(model: nn.Module) -> dict[int, set[tuple[int, str]]]:
    """For each module, by identity, the methods other than ``forward`` that call it, and of whom.

    Args:
        model: The model, or one like it: methods that torch's own classes define do not count.
    """
    found: dict[int, set[tuple[int, str]]] = defaultdict(set)
    sites = CallSites(model)
    for module in model.modules():
        for name in public_methods(type(module)):
            if not sites.may_call(methods(type(module))[name]):
                continue
            reach = Reach()
            reach.run(module, name, strict=False)
            for key in reach.called:
                found[key].add((id(module), name))
    return found


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
        for name in RUNS:
            if name in defined:
                self.run(module, name)
        # A user may call the others, but they do not decide how the model runs.
        for name in defined:
            if name not in RUNS:
                self.run(module, name, strict=False)

    def remember(self) -> Callable[[], None]:
        """Take down what is noted so far; calling the result forgets all that came after."""
        before = set(self.opened), dict(self.called), dict(self._read)

        def forget() -> None:
            self.opened, self.called, self._read = before

        return forget

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
                elif value.name in RUNS:
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
        static = isinstance(static_attribute(type(module), name), staticmethod)
        bound = () if static else (frozenset([module]),)
        return self.read(function, (*bound, *args), keywords or {}, strict)

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
                reader = Reader(self, function, found, args, keywords, strict)
                self._read[key] = reader.read()
        return self._read[key]
