"""How the tensors of an operator are computed, of whatever a name stands for when they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from reparam.algebra.affine import AffineConv
from reparam.algebra.lowering import rounded, tensors_of
from reparam.algebra.norms import Norm


@dataclass(frozen=True, eq=False)
class Recipe:
    """How the tensors of the module of a form are computed; `recipe_of` makes it.

    Args:
        form: The form, over stand-ins for its parameters.
        like: What stands for the parameter after which they are rounded; None if there is none.
        dtype: The type that they are rounded to; None if it is that parameter's.
        norm: The norm that takes the form in, if one does.
    """

    form: AffineConv
    like: Any
    dtype: torch.dtype | None
    norm: Norm | None

    def __deepcopy__(self, memo: dict[int, Any]) -> Recipe:
        return self  # nobody changes it

    @property
    def conditional(self) -> bool:
        """Whether it holds for some numbers of its tensors only."""
        return self.form.weights.conditional

    def over(self, stand_in: Callable[[Any], Any]) -> Recipe:
        """The same recipe, with other things in place of its tensors."""
        return replace(
            self,
            form=replace(self.form, weights=self.form.weights.over(stand_in)),
            like=None if self.like is None else stand_in(self.like),
            norm=None if self.norm is None else self.norm.over(stand_in),
        )

    def exact(self, read: Callable[[Any], Any]) -> dict[str, Tensor]:
        """The tensors by name, in float64.

        Args:
            read: Gives tensors for what stands for them.

        Raises:
            LawError: If a law does not hold for these tensors that did for those of the form.
        """
        device = None if self.like is None else read(self.like).device
        kernel, bias = self.form.weights.evaluate(device, read)
        return tensors_of(self.form, kernel, bias, self.norm, read)

    def type_of(self, exact: Tensor, read: Callable[[Any], Any]) -> torch.dtype:
        """The type of one of the tensors once it is rounded."""
        if self.like is None or not exact.is_floating_point():
            return exact.dtype
        like: Tensor = read(self.like)
        return self.dtype or like.dtype

    def rounded(self, exact: dict[str, Tensor], read: Callable[[Any], Any]) -> dict[str, Tensor]:
        """The tensors as `take_after` rounds them."""
        if self.like is None:
            return exact
        like: Tensor = read(self.like)
        return {
            name: rounded(tensor, like, self.type_of(tensor, read))
            for name, tensor in exact.items()
        }


def recipe_of(form: AffineConv, norm: Norm | None, stand_in: Callable[[Any], Any]) -> Recipe:
    """The recipe of a form, of what stands for tensors, and what is computed of them, in it."""
    like, dtype = form.like, form.dtype
    alone = replace(form, like=None, pad_value=None, base=None)
    fixed = None if like is None or dtype == like.dtype else dtype
    return Recipe(alone, like, fixed, norm).over(stand_in)
