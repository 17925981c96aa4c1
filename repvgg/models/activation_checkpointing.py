"""Trades computation for memory: what a block computes is computed again for its gradients.

The second pass must leave no trace. Its gradients are those of the first, but a batch norm would
move its running statistics once more; here it moves copies, which are thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_Context = AbstractContextManager[None]


def run_checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    """Runs a block without keeping the values inside for the backward pass.

    Shape:
        - x: what the block takes
        - Output: what the block returns
    """
    out: Tensor
    if torch.compiler.is_compiling():  # which takes no contexts, and needs none
        out = checkpoint(block, x, use_reentrant=False)
    else:
        out = checkpoint(block, x, use_reentrant=False, context_fn=partial(_contexts, block))
    return out


def _contexts(block: nn.Module) -> tuple[_Context, _Context]:
    """The contexts of the first pass and of the second."""
    return nullcontext(), _buffers_kept(block)


@contextmanager
def _buffers_kept(block: nn.Module) -> Iterator[None]:
    kept = [(module, dict(module.named_buffers(recurse=False))) for module in block.modules()]
    for module, buffers in kept:
        for name, buffer in buffers.items():
            setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, buffers in kept:
            for name, buffer in buffers.items():
                setattr(module, name, buffer)
