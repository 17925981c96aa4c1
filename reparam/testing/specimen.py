"""An operator whose rule is checked: with tensors of its own, by itself and between neighbours."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.algebra import AffineConv, identity
from reparam.modules import copy_apart, in_float64
from reparam.rules import Rule, Selecting, Step, Target, call_rule

Pair = tuple[nn.Module | None, nn.Module | None]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

_NORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""By the number of spatial axes."""

_WIDTH = 3


@dataclass(frozen=True)
class Specimen:
    """A module or a function, and what it is called with besides its input.

    Args:
        target: What its rule is registered for.
        module: The module, in float64 and eval mode; an empty one if it is a function.
        arguments: The further arguments.
    """

    target: Target
    module: nn.Module
    arguments: tuple[Any, ...]

    @classmethod
    def of(cls, original: Any, target: Target, arguments: Sequence[Any]) -> Specimen:
        """A specimen of copies of a module or a function and of its further arguments."""
        module = copy_apart(original) if isinstance(original, nn.Module) else nn.Module()
        copies = (in_float64(copy.deepcopy(argument)) for argument in arguments)
        return cls(target, module.double().eval(), tuple(copies))

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        held = (*self.module.parameters(), *self.module.buffers(), *self.arguments)
        devices = (tensor.device for tensor in held if isinstance(tensor, Tensor))
        return next(devices, torch.device("cpu"))

    def draw(self, generator: torch.Generator) -> None:
        """Give all its weights other values."""
        draw(self.module, generator)
        for argument in self.arguments:
            if isinstance(argument, Tensor):
                _draw(argument, generator)

    def ask(self, rule: Rule, rank: int) -> Step | Selecting | None:
        """What a rule says of it, for an input of so many axes."""
        leading = (self.module,) if isinstance(self.target, type) else ()
        args = (*leading, identity("x", rank), *self.arguments)
        return call_rule(rule, self.target, "in rulecheck", args, {})

    def between(self, before: nn.Module | None, after: nn.Module | None) -> fx.GraphModule:
        """The network of it and its neighbours."""
        held: dict[str, Any] = {"before": before, "operator": self.module, "after": after}
        graph = fx.Graph()
        value = graph.placeholder("x")
        if before is not None:
            value = graph.call_module("before", (value,))
        arguments = []
        for number, argument in enumerate(self.arguments):
            if isinstance(argument, Tensor):
                held[name := f"argument{number}"] = argument
                argument = graph.get_attr(name)
            arguments.append(argument)
        if isinstance(self.target, type):
            value = graph.call_module("operator", (value, *arguments))
        else:
            call = (value, *arguments)
            value = graph.create_node("call_function", self.target, call, name="operator")
        if after is not None:
            value = graph.call_module("after", (value,))
        graph.output(value)
        return fx.GraphModule(held, graph).eval()


def draw(module: nn.Module, generator: torch.Generator) -> None:
    """Give a module other weights; buffers that have no negative value stay positive."""
    for parameter in module.parameters():
        _draw(parameter, generator)
    for buffer in module.buffers():
        _draw(buffer, generator, positive=bool(buffer.any()) and not bool((buffer < 0).any()))


def _draw(tensor: Tensor, generator: torch.Generator, *, positive: bool = False) -> None:
    if tensor.is_floating_point():
        values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        tensor.copy_(0.5 + values.abs() if positive else values)


def axes_after_channels(step: Step | Selecting, shape: Sequence[int]) -> int:
    """How many axes of an input come after the one along which a form has its channels."""
    count = max(len(shape) - 2, 0)
    if not isinstance(step, AffineConv):
        return count
    if step.axes is not None:
        return len(step.axes)
    # It takes the axis of its neighbour: the second, as for images, or the last, as for tokens.
    return 0 if shape[-1] == step.in_channels != shape[-count - 1] else count


def larger(step: Step | Selecting, count: int, shape: Sequence[int]) -> tuple[int, ...]:
    """A larger shape of odd sizes that differ, with a part that is far from every border."""
    axes = step.axes or () if isinstance(step, AffineConv) else ()
    sizes = [size + 1 + size % 2 + 2 * index for index, size in enumerate(shape)]
    for index, axis in enumerate(axes, len(shape) - len(axes)):
        reach = axis.reach + abs(axis.before) + abs(axis.after)
        sizes[index] += 6 * reach * max(axis.stride, 1)
    sizes[-count - 1] = shape[-count - 1]
    return tuple(sizes)


def neighbours(step: Step | Selecting, count: int, x: Tensor, result: Tensor) -> Iterator[Pair]:
    """What an operator is checked between, by one of its inputs and its result."""
    befores: list[nn.Module | None] = [None]
    afters: list[nn.Module | None] = [None]
    exact: dict[str, Any] = {"device": x.device, "dtype": torch.float64}
    # What no other neighbour joins at a lower cost, a norm does: it is a scale and a shift.
    if count == 0:
        befores += [nn.Linear(_WIDTH, x.shape[-1], **exact)]
    elif count <= 3 and x.dim() == count + 2:
        conv = _CONVOLUTIONS[count - 1]
        befores += [
            conv(_WIDTH, x.shape[1], 3, padding=1, **exact),
            conv(_WIDTH, x.shape[1], 1, bias=False, **exact),
            conv(_WIDTH, x.shape[1], 3, 2, padding=1, bias=False, **exact),
            _NORMS[count](x.shape[1], **exact),
        ]
    form = isinstance(step, AffineConv)
    if count == 0 or not form:
        afters += [nn.Linear(result.shape[-1], _WIDTH, **exact)]
    if (count or not form) and 2 <= result.dim() <= 5:
        afters += [_NORMS[result.dim() - 2](result.shape[1], **exact)]
    if form and 0 < count <= 3 and result.dim() == count + 2:
        conv = _CONVOLUTIONS[count - 1]
        afters += [
            conv(result.shape[1], _WIDTH, 3, **exact),
            conv(result.shape[1], _WIDTH, 3, padding=1, **exact),
            conv(result.shape[1], _WIDTH, 3, 2, padding=1, **exact),
        ]
    return (pair for pair in product(befores, afters) if any(part is not None for part in pair))


def input_of(before: nn.Module | None, count: int, shape: Sequence[int]) -> tuple[int, ...]:
    """What the first of two neighbours needs for the operator to get an input of a shape."""
    if before is None:
        return tuple(shape)
    sizes = list(shape)
    sizes[-count - 1] = sizes[-count - 1] if isinstance(before, _NORMS) else _WIDTH
    strides: Any = getattr(before, "stride", ())
    for index, stride in enumerate(strides, len(sizes) - len(strides)):
        sizes[index] *= stride
    return tuple(sizes)
