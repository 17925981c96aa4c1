"""Run one operator of a graph by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx


def run_function(node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a function or a tensor method returns for other operands.

    Args:
        node: The node that calls it.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """
    target: Any = node.target
    if node.op == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    return target(*args, **kwargs)


def in_float64(value: Any) -> Any:
    """A floating-point tensor in float64; anything else as it is."""
    floats = isinstance(value, Tensor) and value.is_floating_point()
    return value.double() if floats else value


def cloned(value: Any) -> Any:
    """A tensor with memory of its own; anything else as it is."""
    return value.clone() if isinstance(value, Tensor) else value
