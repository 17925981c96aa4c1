"""Call modules in float64, without copies of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from reparam.fused_forward import of_any_type
from reparam.modules import fetch, has_hooks, join, own_tensors
from reparam.running import Widened
from reparam.state import undisturbed


def call_exact(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    exact: Mapping[str, Tensor] | None = None,
    without: Collection[str] = (),
) -> Any:
    """Call a module in float64, without a copy of it.

    Args:
        module: The module.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        exact: Parameters of it that are known more exactly than it holds them.
        without: Paths of its parts whose tensors are not used.
    """
    unused = tuple(f"{path}." for path in without)
    better = {id(fetch(module, name)): tensor for name, tensor in (exact or {}).items()}
    given = {
        join(path, name): better[id(tensor)] if id(tensor) in better else tensor.detach().double()
        for path, part in module.named_modules()  # each once, since each is put back once
        if not f"{path}.".startswith(unused)
        for name, tensor in own_tensors(part).items()
        if tensor.is_floating_point()
    }
    with ExitStack() as around:
        if not _only_computes(module):
            around.enter_context(undisturbed(module))
            around.enter_context(Widened())  # type: ignore[no-untyped-call]
        around.enter_context(of_any_type())
        return torch.func.functional_call(module, given, args, kwargs, tie_weights=False)


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
