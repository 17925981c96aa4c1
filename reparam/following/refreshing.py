"""Bring a fused model up to date: its weights are computed again, and nothing is traced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from reparam.algebra import Recipe, loses_digits
from reparam.errors import LawError, ReparamError
from reparam.following.live_operators import is_live
from reparam.following.names import reader, registered
from reparam.following.recipe_books import RecipeBook, book_of, check_original
from reparam.modules import ALONE, AtWork, find, own_tensors, threads_for
from reparam.verification import is_finite

ModelT = TypeVar("ModelT", bound=nn.Module)


def refresh(fused: ModelT, model: nn.Module) -> ModelT:
    """Bring a fused model up to date after its original was trained on.

    Nothing is traced or planned: the weights of each operator are computed from the parameters of
    the same names, and what was never fused is copied, so that the fused model is what `fuse` would
    make of the model now, bit for bit. One operator is computed at a time.

    Args:
        fused: What `fuse` or `Plan.apply` returned, or a copy of it, also one of another type,
            memory format or device. It is changed in place.
        model: The model that it was made of, or another one with parameters of the same names, such
            as an average of it, or a live form (see `fuse`). It may be in training mode: the fused
            model computes what it does in the modes in which it was fused.

    Returns:
        The fused model.

    Raises:
        ReparamError: If the fused model does not know what it was made of; if a parameter of the
            model is gone or new, or has another shape or type; if a law does not hold any more that
            looked at numbers, such as those that a padding holds. The fused model is then as it
            was. Also if weights are not finite any more or lose digits in their type, of which the
            message names all; the fused model is up to date then.

    Examples:
        >>> import torch
        >>> import reparam
        >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)
        >>> model = torch.nn.Sequential(*layers).eval()
        >>> fused = reparam.fuse(model)
        >>> with torch.no_grad():
        ...     _ = model[1].weight.mul_(2)
        >>> fused = reparam.refresh(fused, model)
        >>> torch.equal(fused[0].weight, reparam.fuse(model)[0].weight)
        True
    """
    book = book_of(fused)
    if not isinstance(model, nn.Module):
        raise ReparamError(f"expected a torch.nn.Module, found {type(model).__name__}")
    with ALONE, AtWork() as work, work:
        tensors = check_original(book, model)
        read = reader(tensors.__getitem__)
        operators = _operators(book, fused)
        targets = _targets(fused, tensors, [module for _, module in operators.values()])
        for path, (recipe, module) in operators.items():
            if recipe.conditional:
                _computed(recipe, read, path, module)
        lost = [
            path
            for path, (recipe, module) in operators.items()
            if not _written(recipe, read, path, module)
        ]
        for target, source in targets:
            target.copy_(source)
    if lost:
        raise ReparamError(
            f"the new weights of {', '.join(lost)} are not finite, or lose digits in their type: "
            "the fused model has them, but a new call of fuse would leave these operators alone"
        )
    return fused


def _operators(book: RecipeBook, fused: nn.Module) -> dict[str, tuple[Recipe, nn.Module]]:
    """The operators of a fused model that hold weights, with their recipes, each once.

    Raises:
        ReparamError: If one is gone.
    """
    operators: dict[str, tuple[Recipe, nn.Module]] = {}
    seen: set[int] = set()
    for path, recipe in book.operators.items():
        module = find(fused, path)
        if not isinstance(module, nn.Module):
            raise ReparamError(f"the fused model has no operator {path} any more")
        if id(module) not in seen and not is_live(module):
            operators[path] = recipe, module
        seen.add(id(module))
    return operators


def _targets(
    fused: nn.Module, tensors: Mapping[str, Tensor], operators: Iterable[nn.Module]
) -> list[tuple[Tensor, Tensor]]:
    """What of a fused model is copied, with what it is copied from.

    Raises:
        ReparamError: If a parameter of the fused model has none of its name and shape.
    """
    own = {id(tensor) for module in operators for tensor in own_tensors(module).values()}
    pairs: dict[int, tuple[Tensor, Tensor]] = {}
    for name, tensor in registered(fused):
        source = tensors.get(name)
        if id(tensor) in own or source is tensor:
            continue
        if source is None or source.shape != tensor.shape:
            found = "none" if source is None else f"one of shape {tuple(source.shape)}"
            raise ReparamError(
                f"the fused model has {name} of shape {tuple(tensor.shape)}, the model {found}"
            )
        pairs.setdefault(id(tensor), (tensor, source))
    return list(pairs.values())


def _computed(
    recipe: Recipe, read: Callable[[Any], Any], path: str, module: nn.Module
) -> dict[str, Tensor]:
    """The tensors of an operator, in float64.

    Raises:
        ReparamError: If a law does not hold any more, or the operator is another one now.
    """
    try:
        with threads_for(recipe.form.multiply_adds):
            exact = recipe.exact(read)
    except LawError as problem:
        reason = f"{path} cannot be what it was: {problem}; fuse the model again"
        raise ReparamError(reason) from None
    held = exact, own_tensors(module)
    now, before = ({name: value.shape for name, value in tensors.items()} for tensors in held)
    if now != before:
        raise ReparamError(f"{path} is another operator than the one that was fused")
    return exact


def _written(recipe: Recipe, read: Callable[[Any], Any], path: str, module: nn.Module) -> bool:
    """Write the new tensors of an operator; whether they are as good as `fuse` wants them."""
    exact, own = _computed(recipe, read, path, module), own_tensors(module)
    rounded = own
    if any(tensor.dtype != recipe.type_of(exact[name], read) for name, tensor in own.items()):
        rounded = recipe.rounded(exact, read)  # a copy in another type, which rounds once more
    for name, tensor in own.items():
        tensor.copy_(exact[name] if rounded is own else rounded[name])
    return is_finite(module) and not loses_digits(module, rounded, exact)
