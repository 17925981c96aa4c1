"""The types of values in a traced graph, as far as they are certain."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from reparam.modules import has_hooks, join

_OF_ONE_TYPE = {
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
}  # fmt: skip

_ARITHMETIC = {operator.add, operator.sub, operator.mul, operator.neg}


@dataclass(frozen=True)
class KnownDtype:
    """A type, and the weight whose type it is.

    Args:
        dtype: The type.
        weight: The path of the weight; None for a constant.
    """

    dtype: torch.dtype
    weight: str | None = None


class KnownDtypes:
    """What is known of the types of values while a model's code runs on proxies.

    A convolution or a linear layer fails on values of another type than its weight's. So where it
    has run the types of what it read and returned are certain, unless autocast is enabled.
    """

    def __init__(self) -> None:
        self._known: dict[fx.Node, KnownDtype] = {}

    def passed(self, module: nn.Module, path: str, values: Iterable[Any]) -> None:
        """Note what a module that has run tells of the values that it read and returned."""
        if type(module) not in _OF_ONE_TYPE or has_hooks(module):
            return
        weight = module._parameters["weight"]
        if type(weight) is nn.Parameter:
            dtype = KnownDtype(weight.dtype, join(path, "weight"))
            nodes = (value.node for value in values if isinstance(value, fx.Proxy))
            self._known.update(dict.fromkeys(nodes, dtype))

    def computed(self, node: fx.Node) -> None:
        """Note what arithmetic keeps: a number of Python does not change the type of a tensor."""
        if node.op != "call_function" or node.target not in _ARITHMETIC:
            return
        operands = [value for value in node.args if type(value) not in (int, float)]
        types = [self._known[v] for v in operands if isinstance(v, fx.Node) and v in self._known]
        if len(types) == len(operands) and len({known.dtype for known in types}) == 1:
            self._known[node] = types[0]

    def written(self, old: fx.Node, new: fx.Node) -> None:
        """Note that writing in place does not change the type of a value."""
        if old in self._known:
            self._known[new] = self._known[old]

    def of(self, value: fx.Node) -> KnownDtype | None:
        """The type of a value."""
        return self._known.get(value)

    def named_by(self, value: Any) -> KnownDtype | None:
        """The type that ``x.dtype`` is, or a constant."""
        if isinstance(value, torch.dtype):
            return KnownDtype(value)
        if isinstance(value, fx.Node) and value.target is getattr and value.args[1] == "dtype":
            return self._known.get(value.args[0])  # type: ignore[arg-type]
        return None
