"""Run operators of a graph by themselves, and in float64."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from reparam.modules.state import undisturbed
from reparam.modules.tree import has_hooks, join, own_tensors


def run_function(node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a function or a tensor method returns for other operands."""
    target: Any = node.target
    if node.op == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    return target(*args, **kwargs)


def in_float64(value: Any) -> Any:
    """A floating-point tensor in float64; anything else as it is."""
    floats = isinstance(value, Tensor) and value.is_floating_point()
    return value.double() if floats else value


TYPES_MAY_DIFFER = ContextVar("TYPES_MAY_DIFFER", default=False)
"""Whether fused code runs in another type than it was traced with, to see what it computes."""


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


def copied_values(structure: Any) -> Any:
    """A structure with tensors of its own, of which those share memory that did before."""
    leaves, layout = tree_flatten(structure)
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    tensors = deepcopy([leaves[place].detach() for place in places])
    for place, tensor in zip(places, tensors, strict=True):
        leaves[place] = tensor.requires_grad_(leaves[place].requires_grad)
    return tree_unflatten(leaves, layout)


def call_exact(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    exact: Mapping[int, Tensor],
    without: Collection[str] = (),
) -> Any:
    """Call a module in float64, without a copy of it.

    Args:
        module: The module.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        exact: What it uses instead of some parameters, by the identity of these.
        without: Paths of its parts whose tensors are not used.
    """
    weights = _weights(module, exact, without)
    with nullcontext() if _only_computes(module) else _on_trial(module), of_any_type():
        return torch.func.functional_call(module, weights, args, kwargs, tie_weights=False)


def call_in_modes(
    module: nn.Module,
    inputs: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]],
    without: Collection[str] = (),
) -> list[Any]:
    """Call a module in float64 again and again, as its users may: what it returned each time.

    That is with gradients and autocast, and in inference mode, under other random numbers each time
    and with what the call before left behind.

    Args:
        module: The module.
        inputs: Makes its positional and keyword arguments.
        without: Paths of its parts whose tensors are not used.
    """
    weights = _weights(module, {}, without)
    device = next((tensor.device.type for tensor in weights.values()), "cpu")
    results = []
    with _on_trial(module), of_any_type():
        for seed, mode in enumerate((torch.enable_grad, torch.inference_mode)):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            # Autocast leaves float64 alone: what comes out otherwise was asked for.
            with mode(), torch.autocast(device, torch.bfloat16, enabled=not seed):
                args, kwargs = inputs()
                call = torch.func.functional_call
                results.append(call(module, weights, args, kwargs, tie_weights=False))
    return results


def _weights(
    module: nn.Module, exact: Mapping[int, Tensor], without: Collection[str]
) -> dict[str, Tensor]:
    """A module's floating-point tensors in float64, by path."""
    unused = tuple(f"{path}." for path in without)
    return {
        join(path, name): exact[id(tensor)] if id(tensor) in exact else tensor.detach().double()
        for path, part in module.named_modules()  # each once, since each is put back once
        if not f"{path}.".startswith(unused)
        for name, tensor in own_tensors(part).items()
        if tensor.is_floating_point()
    }


@contextmanager
def _on_trial(module: nn.Module) -> Iterator[None]:
    """Leave a module as it was, and let what it makes be float64."""
    with undisturbed(module), Widened():  # type: ignore[no-untyped-call]
        yield


def _only_computes(module: nn.Module) -> bool:
    """Whether a module is one of torch's layers in eval mode; a user's may count its calls."""
    return (
        type(module).__module__ in _LAYERS
        and not module.training
        and not module._modules
        and not has_hooks(module)
        and "forward" not in vars(module)
    )


_LAYERS = {
    f"torch.nn.modules.{name}"
    for name in "activation batchnorm conv dropout flatten linear padding pooling".split()
}


@contextmanager
def of_any_type() -> Iterator[None]:
    """Let `TYPES_MAY_DIFFER` be true meanwhile."""
    token = TYPES_MAY_DIFFER.set(True)
    try:
        yield
    finally:
        TYPES_MAY_DIFFER.reset(token)
