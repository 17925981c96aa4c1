"""The tensors of a model by name: what stands for them in a recipe, and what they have to be."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reparam.algebra import Unseen, evaluate, origin_of, over
from reparam.errors import ReparamError
from reparam.modules import join, names_of_tensors


@dataclass(frozen=True)
class Named:
    """What stands for the tensor of this name in whatever model is read."""

    name: str


@dataclass(frozen=True)
class Known:
    """What a tensor was when a model was fused.

    Args:
        shape: Its shape.
        dtype: Its type.
        first: The first of its names; others than its own tell of tied tensors.
    """

    shape: torch.Size
    dtype: torch.dtype
    first: str

    def problem(self, name: str, now: Known | None) -> str | None:
        """What is wrong with the tensor of that name now, if something is."""
        if now is None:
            return "is not there any more, or registered under another name"
        if now.shape != self.shape:
            return f"has the shape {tuple(now.shape)} and had {tuple(self.shape)}"
        if now.dtype != self.dtype:
            return f"is of type {now.dtype} and was of {self.dtype}"
        if now.first != self.first:
            tied, other = (False, self.first) if self.first != name else (True, now.first)
            return f"is {'now' if tied else 'no longer'} the same tensor as {other}"
        return None


class Names:
    """The names of a model's tensors; called, it names those that a value is computed of.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = names_of_tensors(model)
        self._done: dict[int, Any] = {}
        self.used: set[str] = set()

    def __call__(self, value: Any) -> Any:
        """What stands for a tensor: its name, or how it is computed of named ones."""
        return over(origin_of(value), self._stand_in, self._done)

    def _stand_in(self, leaf: Any) -> Any:
        name = self._names.get(id(leaf)) if isinstance(leaf, Tensor) else None
        if name is None:
            return leaf
        self.used.add(name)
        return Named(name)


def reader(tensor_of: Callable[[str], Tensor]) -> Callable[[Any], Any]:
    """What reads stand-ins, given what has the tensors by name."""

    def leaf(value: Any) -> Any:
        if isinstance(value, Unseen):
            return None  # nobody can say
        return tensor_of(value.name) if isinstance(value, Named) else value

    return lambda value: evaluate(value, leaf)


def registered(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers of a model, under all of their names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def held_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of a model by name: parameters, buffers, and plain attributes."""
    held = dict(registered(model))
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                held.setdefault(join(path, name), value)
    return held


def known(tensors: dict[str, Tensor]) -> dict[str, Known]:
    """What some tensors are."""
    first: dict[int, str] = {}
    return {
        name: Known(tensor.shape, tensor.dtype, first.setdefault(id(tensor), name))
        for name, tensor in tensors.items()
    }


def settings(model: nn.Module, names: Collection[str]) -> dict[str, str]:
    """What torch's own modules that hold some tensors say of themselves, such as their eps.

    In a live form an identity holds those of a norm.
    """
    paths = {name.rpartition(".")[0] for name in names}
    return {
        path: module.extra_repr()
        for path, module in model.named_modules(remove_duplicate=False)
        if path in paths
        and type(module).__module__.startswith("torch.nn.modules")
        and type(module) is not nn.Identity
    }


def registry(holder: nn.Module, name: str) -> dict[str, Any]:
    """Where a module holds a tensor."""
    for held in (holder._parameters, holder._buffers, vars(holder)):
        if held.get(name) is not None:
            return held
    raise ReparamError(f"{type(holder).__name__} does not hold {name!r} any more")
