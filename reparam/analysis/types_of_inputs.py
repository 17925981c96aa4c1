"""Where the type and the device of a value that depends on the input are the model's own.

A convolution, a linear layer or a norm fails on values of another type than its weight's, or on
another device. A constant that is moved to where such a value is, or made there, is where the
model's parameters are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import fx, nn

from reparam.capture import (
    Trait,
    converts,
    has_known_name,
    is_of_torch,
    operator_name,
    reached,
    traits,
)
from reparam.modules import layer_at

READS_FLOATS = re.compile(r"conv|linear|(batch|layer|group|instance|rms)_?norm")


@dataclass(frozen=True)
class OwnType:
    """The one type and the one device of a model's parameters and buffers of floats.

    Args:
        dtype: The type; None if there are several.
        device: The device; None if there are several.
    """

    dtype: torch.dtype | None
    device: torch.device | None

    def told(self, attribute: str, *, exactly: bool) -> Any:
        """What ``x.dtype`` or ``x.device`` is of a value like the parameters."""
        if attribute == "device":
            return self.device
        return torch.float64 if exactly else self.dtype

    def like(self, *, exactly: bool) -> torch.Tensor:
        """A value like the parameters."""
        return torch.empty((), dtype=torch.float64 if exactly else self.dtype, device=self.device)


def own_type(root: nn.Module) -> OwnType:
    """The type and the device of a model."""
    tensors = chain(root.parameters(), root.buffers())
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    dtypes, devices = {tensor.dtype for tensor in floats}, {tensor.device for tensor in floats}
    return OwnType(
        next(iter(dtypes)) if len(dtypes) == 1 else None,
        next(iter(devices)) if len(devices) == 1 else None,
    )


def asks_for_own(node: fx.Node, own: OwnType, root: nn.Module) -> bool:
    """Whether a node asks for the type or the device of a value that has the model's own."""
    if node.target is not getattr or node.args[1] not in ("dtype", "device"):
        return False
    return _is_like(node.args[0], own, root, dtype=node.args[1] == "dtype")


def moved_to(node: fx.Node, own: OwnType, root: nn.Module) -> fx.Node | None:
    """The value like the model's own whose type and device a node gives to its operand."""
    if node.op != "call_method" or node.target not in ("to", "type_as"):
        return None
    other = node.args[1] if len(node.args) > 1 else node.kwargs.get("other")
    if not isinstance(other, fx.Node) or other.target is getattr:
        return None
    return other if _is_like(other, own, root, dtype=True) else None


def _is_like(value: Any, own: OwnType, root: nn.Module, *, dtype: bool) -> bool:
    """Whether a value is where the model's parameters are, and of their type if that matters."""
    if own.device is None or (dtype and own.dtype is None):
        return False

    def same(node: fx.Node) -> Iterable[fx.Node]:
        passing = Trait.PASSES_TYPE in traits(node, root)
        users = (user for user in node.users if Trait.PASSES_TYPE in traits(user, root))
        return (*(node.all_input_nodes[:1] if passing else ()), *users)

    alike = reached([value], same)
    if not dtype:
        return not any(operator_name(node) in ("cuda", "cpu", "to") for node in alike)
    computing = chain(alike, *(_read_first(node) for node in alike))
    names = [name_of_torchs(node, root) for node in computing]
    return not any(map(converts, alike)) and any(map(READS_FLOATS.search, names))


def _read_first(node: fx.Node) -> list[fx.Node]:
    """The readers of a value to which it is the first operand."""
    return [user for user in node.users if user.all_input_nodes[:1] == [node]]


def name_of_torchs(node: fx.Node, root: nn.Module) -> str:
    """The name of torch's own operators in small letters; nothing for others."""
    if node.op == "call_module":
        kind = type(layer_at(root, str(node.target)))
        return kind.__name__.lower() if is_of_torch(kind) else ""
    if node.op == "call_method" or (node.op == "call_function" and has_known_name(node.target)):
        return operator_name(node)
    return ""
