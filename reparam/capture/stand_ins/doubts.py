"""What code does whose outcome no graph can hold, and whose code does so, while it is traced.

It asks a proxy what that cannot tell, and may swallow the exception; it catches what may be raised
in a run; it enters a context; it may end early.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

from reparam.capture.stand_ins.type_queries import is_caught
from reparam.capture.trace import Call
from reparam.errors import UntraceableError

CAUGHT = "its forward catches that a proxy has no value"

CATCHES = "its forward catches exceptions: which way it goes shows when it runs"


class Doubts:
    """Whose code does something while it is traced whose outcome no graph can hold.

    Args:
        tracer: The tracer, whose stack tells whose code it is.
        entering: The code that runs the forward of a module; one more is on the stack for each.
    """

    def __init__(self, tracer: Any, entering: CodeType) -> None:
        self._tracer = tracer
        self._entering = entering
        self.refused: dict[int, str] = {}
        """Why the forward of a module cannot be traced, by the identity of the module."""
        self.in_context: set[Call] = set()
        """The calls that enter a context."""
        self.returning_early: set[Call] = set()
        """The calls that may end early."""
        self._tried: tuple[Any, frozenset[int]] = None, frozenset()

    def refuse(self, frame: FrameType | None = None, reason: str = CAUGHT) -> None:
        """Remember whose code asked a proxy what it cannot tell: it may swallow the exception."""
        fresh = {id(call.module): reason for call in self._tracer.stack[-1:]}
        fresh = {key: reason for key, reason in fresh.items() if key not in self.refused}
        self.refused |= fresh
        if frame is not None:
            place = frame, frame.f_lasti
            tried = self._tried[1] if self._tried[0] == place else frozenset()
            self._tried = place, tried | fresh.keys()

    def note_caught(self, frame: FrameType | None) -> None:
        """Remember whose code would catch what fails in a run: it chooses its way by that."""
        depth = 1
        while frame is not None and depth <= len(self._tracer.stack):
            if is_caught(frame):
                self.refused.setdefault(id(self._tracer.stack[-depth].module), CATCHES)
            depth += frame.f_code is self._entering
            frame = frame.f_back

    def forgive(self, frame: FrameType) -> None:
        """Forget what one of torch's functions asked before it found that it got a proxy."""
        place, fresh = self._tried
        if place == (frame, frame.f_lasti):
            for key in fresh:
                self.refused.pop(key, None)

    def may_return_early(self, frame: FrameType) -> None:
        """Remember that the forward that runs may end early, if it is its own code that decides."""
        while str(frame.f_globals.get("__name__")).startswith("reparam.") and frame.f_back:
            frame = frame.f_back
        forward = inspect.unwrap(self._tracer.stack[-1].module.forward)
        if getattr(forward, "__code__", None) is not frame.f_code:
            raise UntraceableError("code that its forward runs decides whether that returns early")
        self.returning_early.add(self._tracer.stack[-1])

    @contextmanager
    def forgotten(self) -> Iterator[None]:
        """Forget what comes up meanwhile."""
        noted = dict(self.refused), set(self.in_context), set(self.returning_early)
        try:
            yield
        finally:
            self.refused, self.in_context, self.returning_early = noted

    def note_context(self) -> None:
        """Remember whose code enters a context: a graph has none."""
        self.in_context.update(self._tracer.stack[-1:])
