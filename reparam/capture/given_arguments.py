"""What stands for the arguments that a user gives while a forward is traced.

A tensor is a value of the graph. What is none may decide which way the code goes: a flag, a name or
None is a constant, and so are the lengths and the keys of containers. A number is a value at first,
so that the new code is for all numbers, and a constant where that cannot be traced. Before the new
code runs, constants are compared with what they were.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from typing import Any

import torch

from reparam.capture.structures import is_same_constant
from reparam.modules import leaves_of, map_leaves

_DECIDE = (bool, str, enum.Enum, torch.dtype, torch.device, torch.Size, slice, type(None))


def argument(
    value: Any, default: Any, placeholder: Callable[[str], Any], *, numbers_decide: bool
) -> Any:
    """What stands for an argument.

    Args:
        value: What the user gives; `inspect.Parameter.empty` where that is not known.
        default: What it is if nobody gives it.
        placeholder: Makes a value of the graph, for what has this suffix.
        numbers_decide: Whether numbers are constants.
    """
    if value is inspect.Parameter.empty:
        return placeholder("")
    if is_same_constant(value, default):
        return default
    leaves = leaves_of(value)
    whole = len(leaves) == 1 and leaves[0] is value
    suffixes = iter([""] if whole else [f"_{number}" for number in range(len(leaves))])

    def stand_in(leaf: Any) -> Any:
        suffix = next(suffixes)
        constant = isinstance(leaf, _DECIDE) or (numbers_decide and _is_number(leaf))
        return leaf if constant else placeholder(suffix)

    return map_leaves(stand_in, value)


def holds_numbers(values: Any) -> bool:
    """Whether there are numbers among some arguments."""
    return any(_is_number(leaf) and not isinstance(leaf, _DECIDE) for leaf in leaves_of(values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
