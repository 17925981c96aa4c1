"""What stands for the arguments that a user gives while a forward is traced.

A tensor is a value of the graph. What is none may decide which way the code goes: a flag, a name or
None is a constant. A number, and a container with what it holds, is one value at first, so that the
new code is for all of them; opened, the number is a constant, and so are the lengths and the keys
of the container. Before the new code runs, constants are compared with what they were.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from reparam.capture.structures import is_same_constant
from reparam.modules import leaves_of, map_leaves

_DECIDE = (bool, str, enum.Enum, torch.dtype, torch.device, type(None))
_CONSTANTS = (*_DECIDE, int, float, torch.Size, slice)


def decides(value: Any, default: Any = inspect.Parameter.empty) -> bool:
    """Whether an argument is a constant at once."""
    return isinstance(value, _DECIDE) or is_same_constant(value, default)


def can_be_opened(value: Any) -> bool:
    """Whether an argument is a number, or a container that we can look into."""
    if isinstance(value, _CONSTANTS):
        return not isinstance(value, _DECIDE)
    leaves = leaves_of(value)
    return len(leaves) != 1 or leaves[0] is not value


def each_argument(forward: Callable[..., Any], given: Mapping[str, Any]) -> Iterator[Any]:
    """What the parameters of a forward are given, each of a variable number by itself."""
    parameters = inspect.signature(forward).parameters if given else {}
    for name, value in given.items():
        kind = parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            yield from value
        elif kind is inspect.Parameter.VAR_KEYWORD:
            yield from value.values()
        else:
            yield value


def opened(value: Any, placeholder: Callable[[int], Any]) -> Any:
    """An argument with placeholders, by their number, in place of what is no constant in it."""
    numbers = iter(range(len(leaves_of(value))))

    def stand_in(leaf: Any) -> Any:
        number = next(numbers)
        return leaf if isinstance(leaf, _CONSTANTS) else placeholder(number)

    return map_leaves(stand_in, value)
