"""How tensors are computed of others, so that they can be computed again of other numbers.

Constants of a forward, and what rules compute of parameters, are tensors; `origin_of` still knows
how they came about. So a kernel that is computed of its parameters is as lazy as they are.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.immutable_collections import immutable_list
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass(frozen=True, eq=False)
class Computed:
    """What a function returns for tensors, numbers, and what is computed itself.

    Args:
        function: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


_ORIGINS: Any = WeakTensorKeyDictionary()  # it has no types


def origin_of(value: Any) -> Any:
    """How a tensor was computed, where that is known; else the value itself."""
    return _ORIGINS.get(value, value) if isinstance(value, Tensor) else value


def computed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a function returns, of which it stays known how it was computed."""
    before = _version(args)
    result = function(*args, **kwargs)
    note_origin(result, function, args, kwargs, wrote=_version(args) != before)
    return result


def _version(args: Sequence[Any]) -> int | None:
    """How often the first of some arguments was written to."""
    first = args[0] if args else None
    return None if not isinstance(first, Tensor) or first.is_inference() else first._version


def note_origin(
    result: Any,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    wrote: bool = False,
) -> None:
    """Remember that a function gave a result, one tensor or several.

    Args:
        result: The result.
        function: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        wrote: Whether it wrote to the first of them.
    """
    entries = result if isinstance(result, list | tuple) else [result]
    if not any(isinstance(entry, Tensor) for entry in entries):
        return
    if args and result is args[0] and not wrote:
        return  # it is what it was before
    own_args, own_kwargs = _origins((tuple(args), dict(kwargs)))
    if wrote:  # others may have read the value that it was before
        own_args = Computed(torch.clone, own_args[:1], {}), *own_args[1:]
    whole = Computed(function, own_args, own_kwargs)
    for index, entry in enumerate(entries):
        if isinstance(entry, Tensor):
            one_of_several = Computed(operator.getitem, (whole, index), {})
            _ORIGINS[entry] = whole if entry is result else one_of_several


def _origins(arguments: Any) -> Any:
    """Some arguments with how they were computed in their place, in lists of Python's own."""

    def origin(value: Any) -> Any:
        return [_origins(each) for each in value] if _is_immutable(value) else origin_of(value)

    return tree_map(origin, arguments, is_leaf=_is_immutable)


def _is_immutable(value: Any) -> bool:
    """Whether it is a list as a graph holds it, of which torch.compile knows nothing."""
    return isinstance(value, immutable_list)


def fold(
    expression: Any,
    leaf: Callable[[Any], Any],
    node: Callable[[Computed, tuple[Any, ...], Mapping[str, Any]], Any],
    done: dict[int, Any],
) -> Any:
    """Go through an expression without recursion, each of its parts once.

    Args:
        expression: The expression.
        leaf: What becomes of what is not computed.
        node: What becomes of what is, given what became of its arguments.
        done: What became of parts so far, by their identity.
    """
    if not isinstance(expression, Computed):
        return leaf(expression)

    def become(value: Any) -> Any:
        return done[id(value)] if isinstance(value, Computed) else leaf(value)

    pending = [expression]
    while pending:
        part = pending[-1]
        if id(part) in done:
            pending.pop()
            continue
        missing = [each for each in _parts(part) if id(each) not in done]
        if missing:
            pending.extend(missing)
            continue
        done[id(part)] = node(part, *tree_map(become, (part.args, dict(part.kwargs))))
    return done[id(expression)]


def _parts(part: Computed) -> list[Computed]:
    """What is computed itself among the arguments of something."""
    arguments = tree_leaves((part.args, dict(part.kwargs)))
    return [each for each in arguments if isinstance(each, Computed)]


def evaluate(expression: Any, read: Callable[[Any], Any] = lambda leaf: leaf) -> Any:
    """Compute an expression of what its leaves are now; values are let go after their last use."""
    if not isinstance(expression, Computed):
        return read(expression)
    uses = _uses(expression)
    done: dict[int, Any] = {}

    def run(part: Computed, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        result = _run(part, args, kwargs)
        for each in _parts(part):
            uses[id(each)] -= 1
            if not uses[id(each)]:
                done.pop(id(each))
        return result

    return fold(expression, read, run, done)


def _uses(expression: Computed) -> dict[int, int]:
    """How often each part of an expression is an argument of another one, by its identity."""
    uses: dict[int, int] = {}
    pending = [expression]
    while pending:
        for part in _parts(pending.pop()):
            if id(part) not in uses:
                pending.append(part)
            uses[id(part)] = uses.get(id(part), 0) + 1
    return uses


def _run(part: Computed, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if part.function in _ASK:  # an answer has no gradient
        args, kwargs = tree_map_only(Tensor, Tensor.detach, (args, kwargs))
    return part.function(*args, **kwargs)


def over(expression: Any, stand_in: Callable[[Any], Any], done: dict[int, Any]) -> Any:
    """The same expression of other leaves."""
    return fold(
        expression, stand_in, lambda part, args, kwargs: Computed(part.function, args, kwargs), done
    )


class Unseen:
    """What stands in an expression for that nobody has seen how something was computed."""


UNSEEN = Unseen()


def leaves(expression: Any) -> list[Any]:
    """What an expression is computed of."""
    found: list[Any] = []
    over(expression, found.append, {})
    return found


class Recording(TorchFunctionMode):
    """A context in which it stays known how tensors are computed.

    Attributes:
        asked: What was asked about the numbers of tensors, and the answers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Computed, Any]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = computed(func, *args, **kwargs)
        if func in _ASK:
            self.asked.append((Computed(func, *tree_map(origin_of, (args, dict(kwargs)))), result))
        return result


_METHODS = (
    "item tolist numpy __array__ __bool__ __int__ __float__ __index__ equal allclose is_nonzero"
).split()

_ASK = {*(getattr(Tensor, name) for name in _METHODS), torch.equal, torch.allclose}
"""What tells numbers of a tensor to Python, after which nothing of them can be followed."""
