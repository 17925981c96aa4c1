"""Affine operators that still stand side by side in a fused network, and who has to explain them.

Independent of the library under test: it follows the tensors that PyTorch's operators read and
write, and the modules that run them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tests.support.counting import (
    ADDITIONS,
    BATCH_NORMS,
    CONVOLUTIONS,
    LINEARS,
    MULTIPLICATIONS,
    TRANSPOSED,
    ExecutedOperators,
    is_view,
    operator_name,
    writes,
)
from tests.support.leftovers import WHOLE_VIEWS

KINDS = {
    "convolution": CONVOLUTIONS | TRANSPOSED,
    "linear": LINEARS,
    "batch norm": BATCH_NORMS,
    "addition": ADDITIONS - {"addcmul"},
    "multiplication": MULTIPLICATIONS - {"addcmul"},
}


ELSEWHERE = -1
"""The axis of channels that a view spread over others."""


class Running(NamedTuple):
    """A call of a module: its path, a number of its own, and whether somebody listens to it."""

    place: str
    number: int
    hooked: bool


Views = tuple[tuple[str, str], ...]


@dataclass(eq=False)
class Operator:
    """One operator that ran.

    Args:
        kind: One of `KINDS`; empty for all others.
        place: The path of the innermost module that ran it.
        affine: Whether it is one of `KINDS` and acts on a single value, constants apart, in a
            module without hooks.
        channel_axis: The axis of its channels, where it has some of its own.
        reads: The operators whose values it reads.
        moved_axes: Where these had their channel axes, after the views between.
        readers: The operators that read its value.
        calls: The calls around it, the outermost first.
        views: For each of these that it reads, the views between and the modules that run them.
    """

    kind: str
    place: str
    affine: bool
    channel_axis: int | None = None
    reads: list["Operator"] = field(default_factory=list)
    moved_axes: list[int | None] = field(default_factory=list)
    readers: list["Operator"] = field(default_factory=list)
    calls: tuple[Running, ...] = ()
    views: dict["Operator", Views] = field(default_factory=dict)

    def continues(self, first: "Operator") -> bool:
        """Whether both are affine along the same axis."""
        if not (self.affine and first.affine):
            return False
        moved = self.moved_axes[self.reads.index(first)]
        if moved is None or self.channel_axis is None:
            return moved != ELSEWHERE
        return moved == self.channel_axis


class _Run:
    """What reads what; `made` is keyed by the identity of tensors that `alive` keeps alive."""

    def __init__(self, model: nn.Module) -> None:
        self.made: dict[int, tuple[Operator, int | None, Views]] = {}
        self.all: list[Operator] = []
        self.alive: list[Any] = []
        self.paths = {id(module): name for name, module in model.named_modules()}
        self.stack = [Running("", 0, has_hooks(model))]
        self.numbers = count(1)

    def seen(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.alive.append((inputs, outputs))
        if not writes(func) and any(o is i for o in outputs for i in inputs):
            return  # dropout in evaluation
        name = operator_name(func).removesuffix("_")
        values = {id(v): self.made[id(v)] for v in inputs if id(v) in self.made}
        if not values:
            return  # of parameters only
        if is_view(func) and name in WHOLE_VIEWS:
            operator, axis, views = self.made[id(inputs[0])]
            views += ((name, self.stack[-1].place),)
            self.made[id(outputs[0])] = operator, _moved(axis, name, args, outputs[0]), views
            return
        kind = next((kind for kind, names in KINDS.items() if name in names), "")
        sources = {id(value[0]): value for value in values.values()}
        alone = len(values) == 1 and id(args[0]) in values and not _does_nothing(kind, args)
        running = self.stack[-1]
        axis = _channel_axis(kind, args)
        affine = bool(kind) and alone and not running.hooked
        made = Operator(kind, running.place, affine, axis, calls=tuple(self.stack))
        for source, moved, views in sources.values():
            made.reads.append(source)
            made.views[source] = views
            made.moved_axes.append(moved)
            source.readers.append(made)
        for tensor in outputs:
            self.made[id(tensor)] = made, axis, ()
        self.all.append(made)

    def passed(self, place: str, given: Any, result: Any) -> None:
        """Notes what a module returned as it got it."""
        same = {id(leaf) for leaf in tree_leaves(given)} & {
            id(leaf) for leaf in tree_leaves(result)
        }
        for key in same & self.made.keys():
            operator, axis, views = self.made[key]
            self.made[key] = operator, axis, (*views, ("", place))

    @contextmanager
    def inside_modules(self) -> Iterator[None]:
        """Notes which module runs, its hooks included."""
        call = nn.Module.__call__

        def noted(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            place = self.paths.get(id(module), self.stack[-1].place)
            self.stack.append(Running(place, next(self.numbers), has_hooks(module)))
            try:
                result = call(module, *args, **kwargs)
            finally:
                self.stack.pop()
            self.passed(place, (args, kwargs), result)
            return result

        nn.Module.__call__ = noted
        try:
            yield
        finally:
            nn.Module.__call__ = call


def has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _channel_axis(kind: str, args: Sequence[Any]) -> int | None:
    if kind == "convolution":
        return args[0].dim() - args[1].dim() + 1
    if kind == "linear":
        return args[0].dim() - 1
    return 1 if kind == "batch norm" else None


def _moved(axis: int | None, name: str, args: Sequence[Any], result: Tensor) -> int | None:
    """Where a view moves an axis."""
    if axis is None or axis == ELSEWHERE:
        return axis
    shape = args[0].shape
    order = list(range(len(shape)))
    if name == "permute":
        return [axis_of % len(shape) for axis_of in args[1]].index(axis)
    if name == "transpose":
        first, second = args[1], args[2]
        order[first], order[second] = order[second], order[first]
        return order.index(axis)
    if result.dim() > axis and result.shape[: axis + 1] == shape[: axis + 1]:
        return axis
    from_end = axis - len(shape)
    if result.dim() >= -from_end and result.shape[from_end:] == shape[from_end:]:
        return result.dim() + from_end
    return ELSEWHERE


def _does_nothing(kind: str, args: Sequence[Any]) -> bool:
    """Whether an operator adds zero or multiplies by one."""
    neutral = {"addition": 0, "multiplication": 1}
    return kind in neutral and not isinstance(args[1], Tensor) and args[1] == neutral[kind]


def affine_pairs(
    model: nn.Module, inputs: Sequence[Any]
) -> tuple[list[tuple[Operator, Operator]], set[str]]:
    """Pairs of affine operators of which the second, a needed one, alone reads the first.

    Also the paths of all modules that ran operators.
    """
    model, inputs = deepcopy(model), deepcopy(tuple(inputs))
    run = _Run(model)
    for leaf in tree_leaves(inputs):
        run.made[id(leaf)] = Operator("", "", False), None, ()
    with run.inside_modules(), torch.no_grad(), ExecutedOperators(run.seen):
        output = model(*inputs)
    returned = [id(leaf) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    needed = [run.made[key][0] for key in returned if key in run.made]
    for operator in needed:
        operator.readers.append(Operator("", "", False))
    live: set[Operator] = set()
    while needed:
        operator = needed.pop()
        if operator not in live:
            live.add(operator)
            needed.extend(operator.reads)
    pairs = [
        (first, second)
        for second in run.all
        if second in live
        for first in second.reads
        if first.readers == [second] and second.continues(first)
    ]
    return pairs, {operator.place for operator in run.all}
