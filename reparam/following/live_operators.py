"""Operators that hold no weights of their own: whenever they are read, they are computed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.algebra import Recipe
from reparam.errors import ReparamError
from reparam.following.names import reader, registry
from reparam.modules import own_tensors


@dataclass(eq=False)
class _Anchor:
    """The module that holds the branches of a live operator, which is no part of the operator."""

    module: nn.Module

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self.module, fx.GraphModule):  # it is made anew, of parts that it had before
            raise ReparamError(
                "a live graph module cannot be pickled; save its state_dict, which is that of the "
                "model, and fuse the model again"
            )
        return vars(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Anchor:
        return _Anchor(copy.deepcopy(self.module, memo))


class Live(nn.Module):
    """What makes one of torch's layers compute its tensors of those of its branches.

    `weight` and the like are attributes as those of the layer, with gradients; a parameter that is
    registered here under such a name is that of a branch that stood here.
    """

    def train(self, mode: bool = True) -> Live:
        """Stay as it is in any mode: a batch norm that was fused keeps its statistics."""
        del mode
        return super().train(False)

    def forward(self, input: Tensor) -> Tensor:
        """What the layer computes with the tensors of now, all of which are computed once."""
        run = _run_eagerly if vars(self)["_asks"] else _run
        return run(self, super().forward, input)

    def _load_from_state_dict(self, *args: Any) -> None:
        # A batch norm would miss the number of its batches, which is that of one of its branches.
        nn.Module._load_from_state_dict(self, *args)

    def extra_repr(self) -> str:
        """What the layer says of itself."""
        with _at_hand(self, dict.fromkeys(vars(self)["_made"], True)):
            return super().extra_repr()


@contextmanager
def _at_hand(operator: nn.Module, tensors: Mapping[str, Any]) -> Iterator[None]:
    """Let a live operator read these tensors, and not compute any."""
    before = vars(operator).get("_at_hand")
    vars(operator)["_at_hand"] = tensors
    try:
        yield
    finally:
        vars(operator)["_at_hand"] = before


def computed_tensors(operator: nn.Module) -> dict[str, Tensor]:
    """The tensors of a live operator by name, computed of what the parameters are now.

    Raises:
        LawError: If a law does not hold any more that looked at numbers.
    """
    held = vars(operator)
    anchor: nn.Module = held["_anchor"].module
    recipe: Recipe = held["_recipe"]

    def tensor_of(name: str) -> Tensor:
        *path, own = name.split(".")
        holder: Any = anchor
        for child in path:
            holder = holder._modules[child]
        tensor: Tensor = registry(holder, own)[own]
        return tensor

    read = reader(tensor_of)
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        tensors = recipe.rounded(recipe.exact(read), read)
    eager = not torch.compiler.is_compiling()
    if eager and recipe.like is not None and not torch.is_grad_enabled():
        # Torch multiplies by a parameter in another order, and by one that wants a gradient in a
        # third one, also where it records none.
        wants = held["_trains"] and read(recipe.like).requires_grad
        for name in tensors.keys() & {"weight", "bias"}:
            tensors[name] = nn.Parameter(tensors[name], wants)
    return tensors


def _run(operator: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What a live operator computes, given the forward of its layer."""
    with _at_hand(operator, computed_tensors(operator)):
        return forward(x)


_run_eagerly = torch.compiler.disable(_run)
"""The same where a law looks at numbers, which torch.compile cannot follow."""


def drop_tensors(module: nn.Module) -> tuple[str, ...]:
    """Let a layer hold its tensors no more; their names."""
    names = tuple(own_tensors(module))
    for name in names:
        module._parameters.pop(name, None)
        module._buffers.pop(name, None)
    return names


def make_operator_live(
    module: nn.Module, recipe: Recipe, anchor: nn.Module, made: tuple[str, ...], *, trains: bool
) -> None:
    """Make a layer a live one, which computes its tensors of those in another module.

    Args:
        module: The layer.
        recipe: How its tensors are computed, of names of tensors in the anchor.
        anchor: A module that holds the branches.
        made: The names of the tensors.
        trains: Whether a fused model that is not live would train them.
    """
    held = {"_recipe": recipe, "_asks": recipe.conditional, "_anchor": _Anchor(anchor)}
    vars(module).update(held, _made=made, _trains=trains, _at_hand=None)
    module.__class__ = _LIVE[type(module)]


def is_live(module: nn.Module) -> bool:
    """Whether a module computes its tensors whenever they are read."""
    return isinstance(module, Live)


_KINDS: tuple[type[nn.Module], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.Linear,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
)


def _live_kind(kind: type[nn.Module]) -> type:
    """The class of the live layers of a kind."""
    names = ["weight", "bias"]
    if issubclass(kind, nn.modules.batchnorm._BatchNorm):
        names += ["running_mean", "running_var", "num_batches_tracked"]
    attributes = {name: property(partial(_tensor, name)) for name in names}
    return type(f"Live{kind.__name__}", (Live, kind), {"__module__": __name__, **attributes})


def _tensor(name: str, operator: nn.Module) -> Any:
    """One of the tensors of a live operator; None if it has none of that name."""
    held = vars(operator)
    if name not in held["_made"]:
        return None
    at_hand = held["_at_hand"]
    return (computed_tensors(operator) if at_hand is None else at_hand)[name]


_LIVE: dict[type[nn.Module], type] = {kind: _live_kind(kind) for kind in _KINDS}

globals().update((kind.__name__, kind) for kind in _LIVE.values())  # pickle finds them by name
