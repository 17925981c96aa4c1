"""A piece of a model's own code that only a run decides: one operator of the graph.

Such as a check of a size with its message, or padding where a size needs it. It is called in the
new code as it stands in the old.
"""

from __future__ import annotations

import importlib
import linecache
import re
import sys
from collections.abc import MutableMapping, MutableSequence, MutableSet
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

from torch import fx, nn

from reparam.capture.structures import proxies_in
from reparam.errors import UntraceableError

_CHANGEABLE = (nn.Module, MutableSequence, MutableMapping, MutableSet)


@dataclass(frozen=True)
class CodeStatement:
    """A function made of a statement, or an expression, of a model's code.

    Args:
        source: Its source: a function named `statement` of the values that it reads.
        home: The Python module whose names it reads.
        place: Where it stands: the file and the line.
        checks: Whether it makes nothing, and only raises, warns or prints.
        writes: Whether it may write to what it is given.
        returns: Whether the forward that it stands in may end there: it makes a tuple then, which
            holds what that returns.
        variables: What that module holds; not given, it is looked up.
    """

    source: str
    home: str
    place: str
    checks: bool
    writes: bool
    returns: bool = False
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
    def chooses(self) -> bool:
        """Whether it computes one of several values."""
        return not self.checks and re.search(r"\bif\b", self.source) is not None

    @property
    def line(self) -> str:
        """The file, without its folders, and the line."""
        return Path(self.place).name

    @property
    def __name__(self) -> str:
        return "check" if self.checks else "statement"

    def __call__(self, *values: Any) -> Any:
        """Run it; on proxies it becomes an operator of their graph."""
        proxy = next(proxies_in(values), None)
        if proxy is None:
            return self.function(*values)
        tracer: Any = proxy.tracer
        if self.returns:
            tracer.doubts.may_return_early(sys._getframe(1))
        changed = _CHANGEABLE if self.writes else nn.Module
        if any(isinstance(value, changed) for value in values):
            # A graph hands on what lists hold, and not the lists.
            raise UntraceableError(
                f"a value decides what {self.place} does to a part or a container"
            )
        target = Returning(self) if self.returns else self
        made = tracer.create_proxy("call_function", target, values, {})
        return None if self.returns else made

    def __deepcopy__(self, memo: dict[int, Any]) -> CodeStatement:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return CodeStatement, (
            self.source,
            self.home,
            self.place,
            self.checks,
            self.writes,
            self.returns,
        )


class EarlyReturnError(Exception):
    """A forward ends early; whoever runs its new code returns the value."""

    def __init__(self, value: Any) -> None:
        super().__init__("a forward returns early")
        self.value = value


@dataclass(frozen=True)
class Returning:
    """An operator of a graph at which the forward that it stands in may end.

    Args:
        statement: What decides that.
    """

    statement: CodeStatement
    __name__ = "returning"

    def __call__(self, *values: Any) -> None:
        """Run it.

        Raises:
            EarlyReturnError: If the forward ends.
        """
        if next(proxies_in(values), None) is not None:
            self.statement(*values)
        elif (result := self.statement(*values)) is not None:
            raise EarlyReturnError(result[0])


def returned(value: Any) -> Any:
    """What a forward returns if it does not end early: nobody joins it with what follows."""
    if isinstance(value, fx.Proxy):
        return value.tracer.create_proxy("call_function", returned, (value,), {})
    return value
