"""A piece of a model's own code that only a run decides: one operator of the graph.

Such as a check of a size with its message, or padding where a size needs it. It is called in the
new code as it stands in the old.
"""

from __future__ import annotations

import importlib
import linecache
from collections.abc import MutableMapping, MutableSequence, MutableSet
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from torch import nn

from reparam.capture.structures import proxies_in
from reparam.errors import UntraceableError

_CHANGEABLE = (nn.Module, MutableSequence, MutableMapping, MutableSet)


@dataclass(frozen=True)
class Statement:
    """A function made of a statement, or an expression, of a model's code.

    Args:
        source: Its source: a function named `statement` of the values that it reads.
        home: The Python module whose names it reads.
        place: Where it stands: the file and the line.
        checks: Whether it makes nothing, and only raises, warns or prints.
        writes: Whether it may write to what it is given.
        variables: What that module holds; not given, it is looked up.
    """

    source: str
    home: str
    place: str
    checks: bool
    writes: bool
    variables: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    function: FunctionType = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        variables = self.variables
        if variables is None:
            variables = vars(importlib.import_module(self.home))
        file = f"<statement of {self.place}>"
        linecache.cache[file] = (len(self.source), None, self.source.splitlines(True), file)
        made: dict[str, Any] = {}
        exec(compile(self.source, file, "exec", dont_inherit=True), made)
        function: FunctionType = made["statement"]
        mine = FunctionType(function.__code__, variables, "statement")
        object.__setattr__(self, "function", mine)

    @property
    def __name__(self) -> str:
        return "check" if self.checks else "statement"

    def __call__(self, *values: Any) -> Any:
        """Run it; on proxies it becomes an operator of their graph."""
        proxy = next(proxies_in(values), None)
        if proxy is None:
            return self.function(*values)
        changed = _CHANGEABLE if self.writes else nn.Module
        if any(isinstance(value, changed) for value in values):
            # A graph hands on what lists hold, and not the lists.
            raise UntraceableError(
                f"a value decides what {self.place} does to a part or a container"
            )
        return proxy.tracer.create_proxy("call_function", self, values, {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Statement:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Statement, (self.source, self.home, self.place, self.checks, self.writes)
