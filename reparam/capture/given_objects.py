"""Objects that a module is given, and what its code puts into them.

A graph holds what a module returns. What it appends to a list of its caller's is no result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, fx, nn

from reparam.capture.structures import proxies_in

_NEVER_FILLED = (Tensor, nn.Module, fx.Proxy, fx.Node, type, FunctionType, MethodType, ModuleType)
"""What is looked after elsewhere, or is a part of a program rather than of its data."""


class GivenObjects:
    """What some objects hold, and the objects inside them.

    Args:
        values: The objects.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        self._held: dict[int, tuple[Any, list[Any]]] = {}
        pending = list(values)
        while pending:
            value = pending.pop()
            inside = None if id(value) in self._held else _inside(value)
            if inside is not None:
                self._held[id(value)] = value, inside
                pending.extend(inside)

    def put(self) -> tuple[bool, list[fx.Proxy]]:
        """Whether the objects hold anything else by now, and the values among that."""
        changed, fresh = False, list[fx.Proxy]()
        for value, before in self._held.values():
            now = _inside(value) or []
            if [*map(id, now)] != [*map(id, before)]:
                changed, old = True, {*map(id, before)}
                fresh.extend(p for entry in now if id(entry) not in old for p in proxies_in(entry))
        return changed, fresh


def _inside(value: Any) -> list[Any] | None:
    """What an object holds that code may fill; None for any other."""
    if isinstance(value, _NEVER_FILLED):
        return None
    if isinstance(value, dict):
        return [*value.values()]
    if isinstance(value, list | tuple | set | deque):
        return [*value]
    return [*vars(value).values()] if hasattr(value, "__dict__") else None
