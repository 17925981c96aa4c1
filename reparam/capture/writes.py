"""Writing in place, so that the graph says what is read afterwards.

Code writes to a tensor and reads it on under its old name. A graph has one name for each value, so
what was written to gets a new one: the result of the operator that wrote.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

CONSTANT_FACTORIES = frozenset(
    (torch.zeros, torch.ones, torch.full, torch.eye, torch.arange, torch.linspace, torch.tensor)
)


@fx.has_side_effect
def assign(x: Any, key: Any, value: Any) -> Any:
    """Write to a part of a value, and return the value: ``x[key] = value``.

    Args:
        x: The value; a tensor, or anything else that has items.
        key: Which part.
        value: What is written there.
    """
    x[key] = value
    return x


def assignments(node: fx.Node) -> tuple[fx.Node, ...]:
    """The assignments that made a value, the first one first, and before them what was written to.

    Args:
        node: The value.
    """
    found = [node]
    while found[-1].target is assign and isinstance(found[-1].args[0], fx.Node):
        found.append(found[-1].args[0])
    return tuple(reversed(found))


def returns_what_it_wrote(kind: str, target: Any, kwargs: dict[str, Any]) -> bool:
    """Whether an operator surely writes to its first operand, if that is a tensor, and returns it.

    Args:
        kind: What kind of node calls it.
        target: The operator.
        kwargs: Its keyword arguments.
    """
    if target is assign:
        return True
    name = target if kind == "call_method" else getattr(target, "__name__", "")
    if kind == "call_method":
        known = hasattr(Tensor, name)
    else:
        known = any(getattr(home, name, None) is target for home in (torch, F))
    inplace = kind == "call_function" and kwargs.get("inplace") is True
    return known and (inplace or (name.endswith("_") and not name.endswith("__")))


"""Functions that make the same tensor whenever they are given the same numbers."""
