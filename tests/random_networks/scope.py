"""The body of a random `forward` while it grows: its values exist, so every step is tried."""

import ast
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tests.random_networks.programs import NAMES, OPTIONS, ModuleSource

T = TypeVar("T")

LARGEST = 30_000
"""Elements of a value."""


class RejectedError(Exception):
    """A step that does not fit here."""


class Scope:
    """One `forward` under construction.

    Makers of steps call `pick`, `attribute`, `assign` and `change`; each line runs immediately on
    real values, and whatever fails is taken back by `attempt`.
    """

    def __init__(
        self,
        rng: random.Random,
        inputs: Sequence[Tensor],
        modules: list[ModuleSource],
        depth: int = 0,
    ) -> None:
        self.rng = rng
        self.modules = modules
        self.depth = depth
        self.owner = nn.Module().eval()
        self.inputs = tuple(f"v{i}" for i in range(len(inputs)))
        self.values: dict[str, Any] = dict(zip(self.inputs, inputs, strict=True))
        self.others: dict[str, Any] = {}
        self.options: tuple[str, ...] = ()
        self.attributes: list[str] = []
        self.steps: list[str] = []
        self.numbers = {"v": len(inputs), "m": 0}
        self.may_change_inputs = depth > 0 or rng.random() < 0.1
        self._known: tuple[list[ModuleSource], dict[str, Any]] = ([], dict(NAMES))

    # looking

    def pick(self, *ranks: int) -> str:
        """A value with one of these numbers of axes, likely a recent one."""
        names = [name for name, v in self.values.items() if not ranks or v.dim() in ranks]
        if not names:
            raise RejectedError
        if self.rng.random() < 0.65:
            return names[-1]
        return self.rng.choice(names)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.values[name].shape)

    def alike(self, name: str) -> str:
        """Another value of the same shape, or the same value where there is none."""
        names = [n for n in self.values if n != name and self.shape(n) == self.shape(name)]
        if not names:
            raise RejectedError
        return self.rng.choice(names[-4:])

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def choice(self, options: Sequence[T]) -> T:
        return self.rng.choice(options)

    # growing

    def attribute(self, source: str) -> str:
        """Adds `self.m3 = source` and returns `self.m3`."""
        name = f"self.m{self.numbers['m']}"
        self.numbers["m"] += 1
        self.attribute_line(f"{name} = {source}")
        return name

    def attribute_line(self, line: str) -> None:
        self.attributes.append(line)
        self._run(line)

    def assign(self, expression: str) -> str:
        """Adds `v5 = expression` and returns `v5`."""
        name = f"v{self.numbers['v']}"
        self.numbers["v"] += 1
        self.steps.append(f"{name} = {expression}")
        self._run(self.steps[-1])
        if name not in self.values:
            raise RejectedError
        value = self.values[name]
        if not value.numel() or value.numel() > LARGEST or not is_healthy(value):
            raise RejectedError
        return name

    def option(self) -> str:
        """Adds an input that may be left out, and returns its name."""
        name = self.choice(list(OPTIONS))
        if any(option.startswith(name) for option in self.options):
            raise RejectedError
        default = OPTIONS[name][0]
        self.options += (f"{name}={default}",)
        self.others[name] = ast.literal_eval(default)
        return name

    def unpack(self, expression: str, count: int = 2) -> list[str]:
        """Adds `v5, v6 = expression` and returns both names."""
        first = self.numbers["v"]
        self.numbers["v"] += count
        names = [f"v{number}" for number in range(first, first + count)]
        self.steps.append(f"{', '.join(names)} = {expression}")
        self._run(self.steps[-1])
        return names

    def change(self, name: str, line: str) -> str:
        """Adds a line that changes a value in place."""
        storage = self.values[name].untyped_storage().data_ptr()
        arrived = (self.values[v].untyped_storage().data_ptr() for v in self.inputs)
        if not self.may_change_inputs and storage in arrived:
            raise RejectedError
        self.steps.append(line)
        self._run(line)
        if not is_healthy(self.values[name]):
            raise RejectedError
        return name

    def attempt(self, maker: Callable[["Scope"], Any]) -> bool:
        """Lets the maker add its lines; takes them back, and says so, where they do not fit."""
        try:
            with self.undone_on_failure():
                maker(self)
        except Exception:  # a shape that does not fit raises whatever PyTorch likes
            return False
        return True

    @contextmanager
    def undone_on_failure(self) -> Iterator[None]:
        values, attributes, steps = dict(self.values), len(self.attributes), len(self.steps)
        modules, options = len(self.modules), self.options
        try:
            yield
        except Exception:
            self.values = values
            del self.attributes[attributes:]
            del self.steps[steps:]
            del self.modules[modules:]
            self.options = options
            raise

    def close(self, name: str, result: str, signature: Sequence[str] = ()) -> ModuleSource:
        """The finished module; few of its values are computed for nothing."""
        inputs = (*(signature or self.inputs), *self.options)
        module = ModuleSource(name, inputs, tuple(self.attributes), tuple(self.steps), result)
        if self.chance(0.15):
            features = self.choice(list(self.values))
            module = replace(module, features=features, apart=self.chance(0.4))
        if self.chance(0.85):
            module = module.without_unread_steps()
        return module.without_unused_attributes()

    def _run(self, line: str) -> None:
        names = {**self.names(), **self.values, **self.others, "self": self.owner}
        with torch.no_grad():
            exec(line, names)
        self.owner.eval()
        for name, value in names.items():
            if re.fullmatch(r"v\d+", name):
                (self.values if isinstance(value, Tensor) else self.others)[name] = value

    def names(self) -> dict[str, Any]:
        """The vocabulary and the classes made so far."""
        known, names = self._known
        if known != self.modules[: len(known)]:
            known, names = [], dict(NAMES)
        for module in self.modules[len(known) :]:
            exec(module.source(), names)
        self._known = list(self.modules), names
        return names


def is_healthy(value: Tensor) -> bool:
    """Neither infinite nor all but zero, where a relative error would mean nothing."""
    if not value.numel():
        return False
    size = value.abs().max()
    return bool(value.isfinite().all() and 1e-3 < size < 1e4)
