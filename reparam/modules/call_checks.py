"""The conditions under which the public calls read a model and change it."""

from __future__ import annotations

import gc
from contextlib import ExitStack
from threading import RLock
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.utils import _python_dispatch as python_dispatch

from reparam.errors import ReparamError
from reparam.modules.threads import OneThread
from reparam.modules.tree import own_tensors
from reparam.modules.undoing import fulfil_all, pending

ALONE = RLock()
"""Let no other thread work meanwhile: what is shared changes for a moment.

That is the model, which tracing may change until it is put back, torch itself, which torch.fx
patches, and the cache of `parametrize.cached`, which is to see no value of a trace.
"""


class AtWork:
    """A context that records nothing for gradients, and leaves the process as it was.

    Torch computes on one thread, but for large work (`users_threads`).

    Enter it twice, ``with AtWork() as work, work:``: where an interruption stops it from leaving
    all as it was at one of its ends, it does so at the other. Many small objects are made, and
    Python does not search all of them for garbage again and again.
    """

    def __init__(self) -> None:
        self.grad = torch.is_grad_enabled()
        self.collects = gc.isenabled()
        self.caches = parametrize._cache_enabled
        self.promised = pending()
        self.modes = len(python_dispatch._get_current_dispatch_mode_stack())
        modes = vars(python_dispatch).items()
        self.flags = {name: value for name, value in modes if name.startswith("_is_in_")}
        self.around = ExitStack()
        self.threads = OneThread()

    def __enter__(self) -> AtWork:
        try:
            self._begin()
        except BaseException as problem:  # an interruption: nobody else calls `__exit__`
            self.__exit__(type(problem), problem, problem.__traceback__)
            raise
        return self

    def _begin(self) -> None:
        if torch.is_inference_mode_enabled():
            self.around.enter_context(torch.inference_mode(False))
        torch.set_grad_enabled(False)
        gc.disable()
        parametrize._cache_enabled = 0
        self.threads.start()

    def __exit__(self, *problem: Any) -> None:
        if problem[0] is not None:
            self._leave_modes()
            fulfil_all(self.promised)
        self.threads.stop()
        self.around.close()
        torch.set_grad_enabled(self.grad)
        parametrize._cache_enabled = self.caches
        if self.collects:
            gc.enable()

    def _leave_modes(self) -> None:
        """Leave the modes of torch that an interruption stopped from being left."""
        stack = python_dispatch._get_current_dispatch_mode_stack()
        for mode in reversed(stack[self.modes :]):
            key = getattr(mode, "_dispatch_key", None) or getattr(mode, "_mode_key", None)
            python_dispatch._pop_mode(key)
        vars(python_dispatch).update(self.flags)
        # Torch compares one of these flags in C++, too.
        setter = "set_is_in_mode_without_ignore_compile_internals"
        flag = self.flags.get("_is_in_any_mode_without_ignore_compile_internals")
        if hasattr(python_dispatch, setter):
            getattr(python_dispatch, setter)(flag)


def check_inplace(model: Any) -> None:
    """Raise unless the model can be changed in place."""
    if isinstance(model, ExportedProgram):
        raise ReparamError(
            "an ExportedProgram cannot be changed in place; take the one that is returned"
        )


def check_module(model: Any, expected: str = "a torch.nn.Module") -> None:
    """Raise unless something is a module all of whose tensors there are."""
    if not isinstance(model, nn.Module):
        raise ReparamError(f"expected {expected}, found {type(model).__name__}")
    for name, module in model.named_modules():
        if any(map(is_lazy, own_tensors(module).values())):
            raise ReparamError(
                f"{name or 'the model'} ({type(module).__name__}) is lazy and was never run; run "
                "the model once on an input first"
            )


_WRAPPERS = {
    "OptimizedModule": (
        "compiled code",
        "give the module that was compiled, and compile what is returned: "
        "torch.compile(reparam.fuse(compiled._orig_mod))",
    ),
    "DistributedDataParallel": (
        "a wrapper for training in several processes",
        "give the module in it: reparam.fuse(wrapped.module)",
    ),
    "FullyShardedDataParallel": (
        "a wrapper whose parameters are sharded",
        "gather its full state dict, load that into the module, and give the module",
    ),
}
"""What people put around a model: what each is, and what to give instead."""


def check_model(model: Any, *, trains: bool = False) -> None:
    """Raise unless the model can be planned, in training mode only if it trains on.

    An exported program has no training mode.
    """
    if isinstance(model, ExportedProgram):
        return
    name = type(model).__name__
    if name in _WRAPPERS and type(model).__module__.startswith("torch."):
        what, advice = _WRAPPERS[name]
        raise ReparamError(f"the model is a {name}, {what}; {advice}")
    check_module(model, "a torch.nn.Module or a torch.export.ExportedProgram")
    for name, module in model.named_modules():
        kind = type(module)
        # What torch.fx and torch.export make may say that it trains, whatever it was made of.
        made = kind.__module__.startswith(("torch.fx", "torch.export", "torch._export"))
        made = made or isinstance(module, fx.GraphModule)
        if module.training and kind is not nn.Module and not made and not trains:
            raise ReparamError(
                f"{name or 'the model'} ({type(module).__name__}) is in training mode, where "
                "batch norm depends on the batch; call model.eval() first"
            )
