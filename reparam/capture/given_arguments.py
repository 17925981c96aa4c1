"""What stands for the arguments that a user gives while a forward is traced.

A tensor is a value of the graph. What is none may decide which way the code goes: a flag, a name or
None is a constant, and so are the lengths and the keys of containers. A number is a value at first,
so that the new code is for all numbers, and a constant where that cannot be traced; a container
that the code fills is one value. Before the new code runs, constants are compared with what they
were.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from reparam.capture.structures import is_same_constant
from reparam.modules import leaves_of, map_leaves

_DECIDE = (bool, str, enum.Enum, torch.dtype, torch.device, torch.Size, slice, type(None))


@dataclass(frozen=True)
class Reading:
    """How arguments are read.

    Args:
        numbers_decide: Whether numbers are constants.
        whole: Whether a container is one value.
    """

    numbers_decide: bool = False
    whole: bool = False


def readings(given: Mapping[str, Any]) -> list[Reading]:
    """How some arguments may be read: those that are preferred come first."""
    numbers = any(_is_number(leaf) for leaf in leaves_of(given))
    containers = not all(map(_is_leaf, given.values()))
    return [
        Reading(),
        *([Reading(numbers_decide=True)] if numbers else ()),
        *([Reading(whole=True)] if containers else ()),
    ]


def arguments_of(
    forward: Callable[..., Any],
    given: Mapping[str, Any],
    placeholder: Callable[[str], Any],
    reading: Reading | None,
) -> tuple[list[Any], dict[str, Any]]:
    """The positional and the keyword arguments with which a forward is traced.

    Args:
        forward: The forward.
        given: What its parameters are given, by name; those that hold several hold them all. Where
            that is not known it is `inspect.Parameter.empty`.
        placeholder: Makes a value of the graph, of a name.
        reading: How arguments are read; if it is None, each is a value of the graph.
    """
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    nothing = inspect.Parameter.empty

    def stand_in(name: str, value: Any, default: Any = nothing) -> Any:
        if reading is None:
            return placeholder(name)
        return _stand_in(value, default, lambda suffix: placeholder(f"{name}{suffix}"), reading)

    for parameter in inspect.signature(forward).parameters.values():
        name = parameter.name
        if parameter.kind is parameter.VAR_POSITIONAL:
            for number, value in enumerate(given.get(name, ())):
                positional.append(stand_in(f"{name}_{number}", value))
        elif parameter.kind is parameter.VAR_KEYWORD:
            keywords.update(
                {key: stand_in(key, value) for key, value in given.get(name, {}).items()}
            )
        else:
            stands = stand_in(name, given.get(name, parameter.default), parameter.default)
            if parameter.kind is parameter.KEYWORD_ONLY:
                keywords[name] = stands
            else:
                positional.append(stands)
    return positional, keywords


def _stand_in(value: Any, default: Any, placeholder: Callable[[str], Any], reading: Reading) -> Any:
    """What stands for an argument.

    Args:
        value: What the user gives; `inspect.Parameter.empty` where that is not known.
        default: What it is if nobody gives it.
        placeholder: Makes a value of the graph, for what has this suffix.
        reading: How arguments are read.
    """
    if value is inspect.Parameter.empty:
        return placeholder("")
    if is_same_constant(value, default):
        return default
    if reading.whole and not _is_leaf(value):
        return placeholder("")
    numbers = range(len(leaves_of(value)))
    suffixes = iter([""] if _is_leaf(value) else [f"_{number}" for number in numbers])

    def of_leaf(leaf: Any) -> Any:
        suffix = next(suffixes)
        constant = isinstance(leaf, _DECIDE) or (reading.numbers_decide and _is_number(leaf))
        return leaf if constant else placeholder(suffix)

    return map_leaves(of_leaf, value)


def _is_leaf(value: Any) -> bool:
    """Whether a value is none of the containers that can be looked into."""
    leaves = leaves_of(value)
    return len(leaves) == 1 and leaves[0] is value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, _DECIDE)
