"""What the code of a module that was not traced does with the modules below it.

The code is read, never run. Inside a module that such code only calls, operators may be fused. What
it uses in another way stays as it is: a block of which it runs one layer, a weight that it reads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any

from torch import nn

from reparam.capture.reading.follower import RUNS, Notes
from reparam.capture.reading.function_reader import Reader
from reparam.capture.reading.possible_callers import CallSites
from reparam.capture.reading.source import methods, public_methods
from reparam.capture.reading.values import refer_to


def called_by_methods(model: nn.Module) -> dict[int, set[tuple[int, str]]]:
    """For each module, by identity, the methods other than ``forward`` that call it, and of whom.

    Methods that torch's own classes define do not count.
    """
    callers: dict[int, set[tuple[int, str]]] = defaultdict(set)
    sites = CallSites(model)
    for module in model.modules():
        for name, function in public_methods(type(module)).items():
            if sites.may_call(function):
                reach = Reach()
                Reader(reach, strict=False).read(function, (refer_to(module),), {})
                for key in reach.called:
                    callers[key].add((id(module), name))
    return callers


class Reach(Notes):
    """How code that was not traced uses the modules of a model."""

    def only_called(self) -> list[nn.Module]:
        """The modules that are called, and nothing else is done with them."""
        return [module for key, module in self.called.items() if key not in self.opened]

    def follow(self, module: nn.Module) -> None:
        """Read the code of a module that stays as it is, and of what that code runs."""
        pending = [module]
        while pending:
            module = pending.pop()
            self.followed.add(id(module))
            self._follow(module)
            # Of what it calls and opens, the forward stays as it is, too.
            staying = [] if self.trusting else self.called.values()
            pending = [m for m in staying if id(m) in self.opened - self.followed and m._modules]

    def _follow(self, module: nn.Module) -> None:
        self.opened.add(id(module))
        if "forward" in vars(module):
            follower = Reader(self, strict=True)
            follower.use(follower.refer(vars(module)["forward"]))
        # A user may call the methods that do not run, but they do not decide how the model runs.
        for name, function in methods(type(module)).items():
            Reader(self, strict=name in RUNS).read(function, (refer_to(module),), {})

    def read(
        self, function: FunctionType, args: Sequence[Any], keywords: Mapping[str, Any]
    ) -> None:
        """Read a function, run with some arguments."""
        values = {name: refer_to(value) for name, value in keywords.items()}
        Reader(self, strict=True).read(function, tuple(map(refer_to, args)), values)
