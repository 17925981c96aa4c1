"""Notice what code does to torch while it is traced, and a graph does not show."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import nn

_CONTEXTS: list[Any] = [torch.autocast, torch.no_grad, torch.enable_grad, torch.inference_mode]

_HOOKS = ("register_forward_hook", "register_forward_pre_hook")


@contextmanager
def noticing(entered: Callable[[], None], hooked: Callable[[], None]) -> Iterator[None]:
    """Say when this thread's code enters a context such as ``torch.autocast``, or adds a hook."""
    places: list[tuple[Any, str, Callable[[], None]]] = [
        *((kind, "__enter__", entered) for kind in _CONTEXTS),
        (torch.set_grad_enabled, "__init__", entered),
        *((nn.Module, name, hooked) for name in _HOOKS),
    ]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, notice in places:
        setattr(owner, name, _preceded(getattr(owner, name), notice, get_ident()))
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def _preceded(original: Any, notice: Callable[[], None], thread: int) -> Any:
    @functools.wraps(original)
    def preceded(*args: Any, **kwargs: Any) -> Any:
        if get_ident() == thread:
            notice()
        return original(*args, **kwargs)

    return preceded
