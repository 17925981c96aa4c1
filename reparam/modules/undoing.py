"""What was changed for a moment is undone, also where an interruption comes while it is undone.

Ctrl-C may come at any line, also at the first one of what puts something back. So whoever changes
something writes down first how that is undone, and whoever is outermost does what is left of that
list, as often as it is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import local

Undo = Callable[[], None]


class _Pending(local):
    """How what this thread changed for a moment is undone, the last change last."""

    def __init__(self) -> None:
        self.undos: list[Undo] = []


_PENDING = _Pending()


def pending() -> int:
    """How many changes have to be undone."""
    return len(_PENDING.undos)


def promise(undo: Undo) -> None:
    """Write down how a change will be undone that comes next; it may be undone twice."""
    _PENDING.undos.append(undo)


def fulfil(undo: Undo) -> None:
    """Undo a change, which then is done with."""
    undo()
    forget(undo)


def forget(undo: Undo) -> None:
    """Take down that a change is undone."""
    if undo in _PENDING.undos:
        _PENDING.undos.remove(undo)


def fulfil_all(count: int) -> None:
    """Undo whatever is left but for the first so many changes, the last one first."""
    while pending() > count:
        fulfil(_PENDING.undos[-1])
