"""Public methods that a forward calls: a user may call them, too, as another way into the model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from types import FunctionType
from typing import Any

from torch import nn

from reparam.capture.reading import names_forward_uses
from reparam.capture.structures import without_proxies
from reparam.capture.trace import Call, WayIn, bound, has_options
from reparam.capture.tracer import Tracer

_RUNS_LATER = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def classes_with_ways_in(root: nn.Module) -> dict[type, set[str]]:
    """The classes that define public methods which the forward of a module in a tree may call."""
    homes: dict[type, set[str]] = {}
    for kind in {type(module) for module in root.modules()}:
        if kind.__module__.startswith("torch."):
            continue
        for name in names_forward_uses(kind):
            home = next((base for base in kind.__mro__ if name in vars(base)), None)
            public = name != "forward" and not name.startswith("_")
            if home is not None and public and _is_plain(vars(home)[name]):
                homes.setdefault(home, set()).add(name)
    return homes


def _is_plain(method: Any) -> bool:
    """Whether a method takes what its signature says, and has computed what it returns."""
    return type(method) is FunctionType and not (
        hasattr(method, "__wrapped__") or method.__code__.co_flags & _RUNS_LATER
    )


@contextmanager
def noting_ways_in(tracer: Tracer, homes: Mapping[type, Collection[str]]) -> Iterator[None]:
    """Let a tracer note the calls of some classes' methods by the forwards of their modules."""
    originals = [(kind, name, vars(kind)[name]) for kind, names in homes.items() for name in names]
    for kind, name, method in originals:
        setattr(kind, name, _noted(name, method, tracer))
    try:
        yield
    finally:
        for kind, name, method in originals:
            setattr(kind, name, method)


def _noted(name: str, method: FunctionType, tracer: Tracer) -> Callable[..., Any]:
    @functools.wraps(method)
    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        owner = tracer.innermost()
        by_name = getattr(type(self), name, None) is noted  # and not by super()
        if owner is None or owner.module is not self or not by_name:
            return method(self, *args, **kwargs)
        arguments = bound(functools.partial(method, self), args, kwargs)
        arguments, positional, keywords = without_proxies((arguments, args, kwargs))
        before = len(tracer.caller)
        result = method(self, *args, **kwargs)
        nodes = tuple(islice(tracer.caller, before, None))
        call = Call(
            owner.path, self, owner.parent, arguments, positional, keywords, has_options(method)
        )
        call.result = without_proxies(result)
        tracer.ways_in.append(WayIn(name, owner, call, nodes))
        return result

    return noted
