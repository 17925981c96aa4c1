"""The conditions under which the public calls read a model and change it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from reparam.errors import ReparamError
from reparam.modules.tree import own_tensors

_LOCK = RLock()


@contextmanager
def at_work() -> Iterator[None]:
    """Let no other thread work meanwhile, and record nothing for gradients.

    What is shared changes for a moment: the model, which tracing may change until it is put back,
    torch itself, which torch.fx patches, and the cache of `parametrize.cached`, which is to see no
    value of a trace. Many small objects are made, and Python does not search all of them for
    garbage again and again.
    """
    with _LOCK, torch.inference_mode(False), torch.no_grad():
        collects, caches = gc.isenabled(), parametrize._cache_enabled
        gc.disable()
        parametrize._cache_enabled = 0
        try:
            yield
        finally:
            parametrize._cache_enabled = caches
            if collects:
                gc.enable()


def check_inplace(model: Any) -> None:
    """Raise unless the model can be changed in place."""
    if isinstance(model, ExportedProgram):
        raise ReparamError(
            "an ExportedProgram cannot be changed in place; take the one that is returned"
        )


def check_model(model: Any) -> None:
    """Raise unless the model can be planned; an exported program has no training mode."""
    if isinstance(model, ExportedProgram):
        return
    if not isinstance(model, nn.Module):
        raise ReparamError(
            "expected a torch.nn.Module or a torch.export.ExportedProgram, found "
            f"{type(model).__name__}"
        )
    for name, module in model.named_modules():
        if any(map(is_lazy, own_tensors(module).values())):
            raise ReparamError(
                f"{name or 'the model'} ({type(module).__name__}) is lazy and was never run; run "
                "the model once on an input first"
            )
        kind = type(module)
        # What torch.fx and torch.export make may say that it trains, whatever it was made of.
        made = kind.__module__.startswith(("torch.fx", "torch.export", "torch._export"))
        made = made or isinstance(module, fx.GraphModule)
        if module.training and kind is not nn.Module and not made:
            raise ReparamError(
                f"{name or 'the model'} ({type(module).__name__}) is in training mode, where "
                "batch norm depends on the batch; call model.eval() first"
            )
