"""A fused model becomes a live one: the tensors of its branches are where they were."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from reparam.algebra import Recipe, over
from reparam.errors import LawError, ReparamError
from reparam.following.live_operators import computed_tensors, drop_tensors, make_operator_live
from reparam.following.names import Named
from reparam.modules import fetch


@dataclass(frozen=True, eq=False)
class Standing:
    """What a module held before its model was fused.

    Args:
        module: The module.
        registries: Its parameters, buffers and parts, by the name of the registry.
        transient: The names of its buffers that are not saved.
    """

    module: nn.Module
    registries: Mapping[str, Mapping[str, Any]]
    transient: frozenset[str]


def standing(model: nn.Module) -> dict[str, Standing]:
    """What all modules of a model hold, by path."""
    return {
        path: Standing(
            module,
            {name: dict(vars(module)[name]) for name in _REGISTRIES},
            frozenset(module._non_persistent_buffers_set),
        )
        for path, module in model.named_modules(remove_duplicate=False)
    }


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[list[str]]:
    """Let the dropout layers of a model that trains pass all values on, so that it can be compared.

    Yields:
        The paths of those that are in training mode, to be set so in a copy by `set_training`.
    """
    named = model.named_modules(remove_duplicate=False)
    kind = nn.modules.dropout._DropoutNd
    paths = [path for path, module in named if isinstance(module, kind) and module.training]
    for path in paths:
        fetch(model, path).training = False
    try:
        yield paths
    finally:
        set_training(model, paths)


def set_training(model: nn.Module, paths: Iterable[str]) -> None:
    """Set the layers at some paths to training mode, those that are there."""
    for path in paths:
        layer = _module_at(model, path)
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.training = True


_REGISTRIES = ("_parameters", "_buffers", "_modules")


def make_live(
    fused: nn.Module,
    recipes: Mapping[str, Recipe],
    before: Mapping[str, Standing],
    staying: Collection[str],
) -> None:
    """Let the operators of a fused model compute their weights of those of their branches.

    Args:
        fused: The model.
        recipes: How the tensors of each operator are computed, by its path.
        before: What the model held before it was fused.
        staying: Paths of what stays beside the operators, which is frozen if they are not live.
    """
    below = tuple(f"{path}." for path in staying)
    made: dict[int, tuple[str, ...]] = {}
    for path in recipes:
        operator = fetch(fused, path)
        made.setdefault(id(operator), drop_tensors(operator))
    for path, stood in before.items():  # parents come before their parts
        _put_back(_module_at(fused, path), stood)
    done: set[int] = set()
    for path, recipe in recipes.items():
        operator = fetch(fused, path)
        if id(operator) in done:
            continue
        done.add(id(operator))
        names = _names(recipe)
        anchor = _anchor(path, names)
        prefix = len(anchor) + bool(anchor)
        moved = recipe.over(partial(_below, prefix))
        trains = path not in staying and not path.startswith(below)
        holder = fetch(fused, anchor)
        make_operator_live(operator, moved, holder, made[id(operator)], trains=trains)
        if recipe.conditional:
            _try(operator, path)


def _try(operator: nn.Module, path: str) -> None:
    """Compute the weights of an operator once, while it is known whose mistake it is if that fails.

    Raises:
        ReparamError: If they cannot be computed.
    """
    try:
        computed_tensors(operator)
    except LawError as problem:
        raise ReparamError(f"{path} cannot be live: {problem}") from None


def _module_at(root: nn.Module, path: str) -> nn.Module | None:
    """The module that is registered at a path."""
    module: nn.Module | None = root
    for name in path.split(".") if path else ():
        module = None if module is None else module._modules.get(name)
    return module


def _put_back(module: nn.Module | None, stood: Standing) -> None:
    """Let a module, or what stands in its place, hold again what it held."""
    if module is None:
        return
    for name, entries in stood.registries.items():
        held = vars(module)[name]
        for own, entry in entries.items():
            if entry is not None and held.get(own) is None:
                held[own] = entry
    module._non_persistent_buffers_set |= stood.transient


def _names(recipe: Recipe) -> list[str]:
    """The names of the tensors that a recipe reads."""
    names: dict[str, None] = {}

    def note(leaf: Any) -> Any:
        if isinstance(leaf, Named):
            names[leaf.name] = None
        return leaf

    recipe.over(lambda value: over(value, note, {}))
    return list(names)


def _anchor(path: str, names: Collection[str]) -> str:
    """The path of the innermost module that holds an operator and all of some tensors."""
    holders = [place.split(".")[:-1] for place in (path, *names)]
    common = 0
    while all(len(holder) > common for holder in holders):
        if len({holder[common] for holder in holders}) > 1:
            break
        common += 1
    return ".".join(holders[0][:common])


def _below(prefix: int, value: Any) -> Any:
    """What stands for a tensor, or is computed of some, with names that begin later."""

    def shortened(leaf: Any) -> Any:
        return Named(leaf.name[prefix:]) if isinstance(leaf, Named) else leaf

    return over(value, shortened, {})
