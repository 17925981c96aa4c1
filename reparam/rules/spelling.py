"""The spellings of an operator: all of them by its name, and a target as people write it."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_HOMES: dict[str, Any] = {
    "nn": nn,
    "F": F,
    "torch": torch,
    "Tensor": torch.Tensor,
    "operator": operator,
    "aten": torch.ops.aten,
}
"""Where a target may be found, the place that people write first."""


def spellings(
    names: str, homes: str = "operator torch F Tensor aten", *, in_place: bool = False
) -> tuple[Any, ...]:
    """Every spelling of an operator that torch and Python have, as targets of its rule.

    Args:
        names: Its names, with a space between them.
        homes: Where they are looked for.
        in_place: Whether the operators of Python, the methods and the functions that write in place
            (``operator.iadd``, ``torch.Tensor.add_``) are spellings, too.

    Raises:
        AttributeError: If a name is found nowhere.
    """
    targets: dict[Any, None] = {}
    for name in names.split():
        here = [getattr(_HOMES[home], name, None) for home in homes.split()]
        if in_place:
            here += [
                getattr(_HOMES[home], f"i{name}" if home == "operator" else f"{name}_", None)
                for home in homes.split()
                if home != "torch"
            ]
        if not any(here):
            raise AttributeError(f"{name} is found in none of {homes}")
        targets.update(dict.fromkeys(filter(None, here)))
    return tuple(targets)


def spelled(target: Any) -> str:
    """A target as people write it."""
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return str(target)
    name = str(getattr(target, "__name__", target))
    homes = [home for home, holder in _HOMES.items() if getattr(holder, name, None) is target]
    return f"{homes[0] if homes else getattr(target, '__module__', '')}.{name}"


def first_line(documented: Any) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(documented) or "").partition("\n")[0]
