"""What the code of a module that was not traced does with the modules below it.

The code is read, never run. Inside a module that such code only calls, operators may be fused. What
it uses in another way stays as it is: a block of which it runs one layer, a weight that it reads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from types import FunctionType

from torch import nn

from reparam.capture.reading.call_sites import CallSites
from reparam.capture.reading.follower import RUNS, Follower, Notes
from reparam.capture.reading.reader import read
from reparam.capture.reading.source import methods, public_methods
from reparam.capture.reading.values import Value, refer_to


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
            reach.read(methods(type(module))[name], (refer_to(module),), strict=False)
            for key in reach.called:
                found[key].add((id(module), name))
    return found


class Reach(Notes):
    """How code that was not traced uses the modules of a model."""

    def only_called(self) -> list[nn.Module]:
        """The modules that are called, and nothing else is done with them."""
        return [module for key, module in self.called.items() if key not in self.opened]

    def follow(self, module: nn.Module) -> None:
        """Read the code of a module that stays as it is, and of what that code runs.

        Args:
            module: The module.
        """
        pending = [module]
        while pending:
            module = pending.pop()
            self.followed.add(id(module))
            self._follow(module)
            # Of what it calls and opens, the forward stays as it is, too.
            staying = [] if self.trusting else self.called.values()
            pending = [m for m in staying if id(m) in self.opened - self.followed]

    def _follow(self, module: nn.Module) -> None:
        self.opened.add(id(module))
        if "forward" in vars(module):
            follower = Follower(self, strict=True)
            follower.use(follower.refer(vars(module)["forward"]))
        # A user may call the methods that do not run, but they do not decide how the model runs.
        for name, function in methods(type(module)).items():
            self.read(function, (refer_to(module),), strict=name in RUNS)

    def read(
        self,
        function: FunctionType,
        args: tuple[Value, ...],
        keywords: Mapping[str, Value] | None = None,
        *,
        strict: bool = True,
    ) -> Value:
        """Read a function, and say what it may return.

        Args:
            function: The function.
            args: What its positional arguments may be.
            keywords: What its keyword arguments may be.
            strict: Whether the model runs it, or only a user who asks for it.
        """
        return read(self, function, args, keywords or {}, strict)
