"""What a fused model knows of the model that it was made of: how its operators are computed."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from reparam.algebra import AffineConv, Norm, Recipe, recipe_of
from reparam.errors import ReparamError
from reparam.following.names import Known, Names, held_tensors, known, settings

ATTRIBUTE = "reparam_recipes"
"""The attribute of a fused model that holds its book."""


@dataclass(frozen=True, eq=False)
class RecipeBook:
    """How the operators of a fused model are computed of the tensors of its original, by name.

    Args:
        operators: The recipe of each operator, by its path.
        tensors: What the tensors of the original were.
        parameters: The names of those that are parameters.
        used: The names of those that recipes read.
        settings: What its layers said of themselves, by path.
        numbers: The numbers that decided what its code does, by name.
        lost: Why recipes are missing; empty if they are not.
    """

    operators: Mapping[str, Recipe]
    tensors: Mapping[str, Known] = field(default_factory=dict)
    parameters: frozenset[str] = frozenset()
    used: frozenset[str] = frozenset()
    settings: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, Tensor] = field(default_factory=dict)
    lost: str = ""

    def __deepcopy__(self, memo: dict[int, Any]) -> RecipeBook:
        return self  # nobody changes it

    def __reduce__(self) -> tuple[Any, ...]:
        values = tuple(getattr(self, entry.name) for entry in fields(self))
        try:
            pickle.dumps(values)
        except Exception as error:  # a function without a name, or a very long chain of operators
            lost = f"what its operators are computed of could not be saved with it ({error})"
            return _lost, (lost,)
        return RecipeBook, values


def _lost(reason: str) -> RecipeBook:
    return RecipeBook({}, lost=reason)


class Bookkeeper:
    """Writes the book of a fused model; made before the original changes.

    Args:
        model: The original.
        numbers: The names of what decided what its code does.
    """

    def __init__(self, model: nn.Module, numbers: frozenset[str]) -> None:
        self.names = Names(model)
        tensors = held_tensors(model)
        self._known = known(tensors)
        self._parameters = frozenset(name for name, _ in model.named_parameters())
        self._settings = settings(model, tensors)
        self._numbers = {
            name: tensors[name].detach().clone() for name in numbers if name in tensors
        }

    def book(self, operators: Mapping[str, tuple[AffineConv, Norm | None]]) -> RecipeBook:
        """The book of a model with these operators, given their forms and norms by path."""
        recipes = {path: recipe_of(*form, self.names) for path, form in operators.items()}
        return RecipeBook(
            recipes,
            self._known,
            self._parameters,
            frozenset(self.names.used),
            self._settings,
            self._numbers,
        )


def book_of(fused: Any) -> RecipeBook:
    """The book of a fused model.

    Raises:
        ReparamError: If it has none.
    """
    if not isinstance(fused, nn.Module):
        raise ReparamError(
            f"expected a fused torch.nn.Module, found {type(fused).__name__}; an exported program "
            "cannot be refreshed: export the refreshed model"
        )
    book = vars(fused).get(ATTRIBUTE)
    if not isinstance(book, RecipeBook):
        raise ReparamError(
            f"{type(fused).__name__} does not know what it was fused of: pass the model that "
            "`reparam.fuse` or `Plan.apply` returned, or a copy of it, without what wraps it"
        )
    if book.lost:
        raise ReparamError(
            f"{type(fused).__name__} does not know any more what it was fused of: {book.lost}; "
            "fuse the model again"
        )
    return book


def check_original(book: RecipeBook, model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model by name, if it is one of which a fused model with this book is made.

    Raises:
        ReparamError: If it has other tensors or settings.
    """
    held = held_tensors(model)
    now = known(held)
    parameters = {name for name, _ in model.named_parameters()}
    for name in sorted(book.parameters | book.used):
        problem = book.tensors[name].problem(name, now.get(name))
        if problem is not None:
            raise ReparamError(f"{name} {problem}, since the model was fused; fuse it again")
    new = sorted(parameters - book.parameters)
    if new:
        raise ReparamError(
            f"{new[0]} is a parameter that was not there when the model was fused; fuse it again"
        )
    for path, said in settings(model, book.used).items():
        if said != book.settings.get(path, said):
            raise ReparamError(
                f"{path} is {type(model.get_submodule(path)).__name__}({said}) and was "
                f"({book.settings[path]}) when the model was fused; fuse it again"
            )
    for name, was in book.numbers.items():
        if name in held and not torch.equal(held[name].detach().to(was.device), was):
            raise ReparamError(
                f"{name} holds other numbers than when the model was fused, and they decided what "
                "its code does; fuse it again"
            )
    return held
