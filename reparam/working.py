"""The conditions under which the public calls read a model and change it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import torch
from torch.nn.utils import parametrize

_LOCK = RLock()


@contextmanager
def at_work() -> Iterator[None]:
    """Let no other thread work meanwhile, and record nothing for gradients."""
    with _alone(), torch.inference_mode(False), torch.no_grad(), _without_collection():
        yield


@contextmanager
def _without_collection() -> Iterator[None]:
    """Make many small objects without Python searching all of them for garbage again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _alone() -> Iterator[None]:
    """Let no other thread fuse meanwhile: what is shared changes for a moment.

    That is the model, which tracing may change until it is put back, torch itself, which torch.fx
    patches, and the cache of `parametrize.cached`, which is to see no value of a trace.
    """
    with _LOCK:
        enabled, parametrize._cache_enabled = parametrize._cache_enabled, 0
        try:
            yield
        finally:
            parametrize._cache_enabled = enabled
