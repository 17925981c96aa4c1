"""What tracing replaces for a moment in torch and Python: remembered, and put back."""

from __future__ import annotations

import builtins
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import fx, nn

from reparam.capture.stand_ins.leaf_functions import LeafFunction
from reparam.capture.stand_ins.outlining import Outlined
from reparam.modules import forget, fulfil, promise


class UndonePatches:
    """A context after which torch and Python are as before, also where an interruption ends it.

    Whoever replaces something inside puts it back by itself. But one that is interrupted while it
    does so leaves every module of the process with the code of a trace that is over.

    Args:
        root: The module that is traced.
        kinds: The classes whose methods are replaced, besides that of all modules.
        leaves: The functions that are replaced where they are found.
        outlined: The functions that run other code.
    """

    def __init__(
        self,
        root: nn.Module,
        kinds: Iterable[type],
        leaves: Sequence[LeafFunction],
        outlined: Sequence[Outlined],
    ) -> None:
        self.outlined = outlined
        self.modules = list(root.modules())
        self.leaves = leaves
        homes = (vars(builtins), vars(torch), vars(fx._symbolic_trace))
        self.homes = [(home, dict(home)) for home in homes]
        self.kinds = [(kind, dict(vars(kind))) for kind in (nn.Module, *kinds)]

    def __enter__(self) -> None:
        promise(self.put_back)

    def __exit__(self, kind: type[BaseException] | None, *problem: Any) -> None:
        interrupted = kind is not None and not issubclass(kind, Exception)
        (fulfil if interrupted else forget)(self.put_back)

    def put_back(self) -> None:
        """Put back whatever is not there."""
        for home, before in self.homes:
            for name in before.keys() & home.keys():
                if home[name] is not before[name]:
                    home[name] = before[name]
        for kind, methods in self.kinds:
            for name, method in methods.items():
                if vars(kind).get(name) is not method:
                    setattr(kind, name, method)
        for changed in self.outlined:
            changed.function.__code__ = changed.original
        for leaf in self.leaves:
            leaf.home[leaf.name] = leaf.function
        for home in _patched_homes(self.modules):
            for name, wrapper in list(home.items()):
                if type(wrapper) is FunctionType and _is_patch(wrapper):
                    _unwrap(home, name, wrapper)


def _patched_homes(modules: Sequence[nn.Module]) -> Iterator[dict[str, Any]]:
    """Where torch.fx wraps functions: those that it is told of, and those of ``math``."""
    yield vars(math)
    yield from fx._symbolic_trace._wrapped_fns_to_patch.values()
    for module in modules:
        forward: Callable[..., Any] = inspect.unwrap(type(module).forward)
        yield getattr(forward, "__globals__", {})


def _is_patch(function: FunctionType) -> bool:
    """Whether torch.fx made a function to record calls of another; Python mangles the mark."""
    return any(mark.endswith("__fx_already_patched") for mark in vars(function))


def _unwrap(home: dict[str, Any], name: str, wrapper: Any) -> None:
    original = wrapper.__wrapped__
    if original is getattr(builtins, name, None):
        del home[name]
    else:
        home[name] = original
