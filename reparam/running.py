"""Run operators of a graph by themselves, and in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten


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


class Widened(TorchDispatchMode):
    """Conversions to a smaller floating-point type give float64."""

    supports_higher_order_operators = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.aten._assert_tensor_metadata.default:
            return None
        dtype = kwargs.get("dtype")
        if func is torch.ops.aten._to_copy.default and dtype and dtype.is_floating_point:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


def copied(structure: Any) -> Any:
    """A structure with tensors of its own, of which those share memory that did before."""
    leaves, layout = tree_flatten(structure)
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    tensors = deepcopy([leaves[place].detach() for place in places])
    for place, tensor in zip(places, tensors, strict=True):
        leaves[place] = tensor.requires_grad_(leaves[place].requires_grad)
    return tree_unflatten(leaves, layout)
