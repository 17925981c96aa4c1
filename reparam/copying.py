"""Copies of a model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from reparam.errors import ReparamError


def copy_model(model: nn.Module, shared: Sequence[Tensor] = ()) -> nn.Module:
    """A deep copy but for some tensors, which both will hold.

    Args:
        model: The model.
        shared: These tensors.

    Raises:
        ReparamError: If the model cannot be copied.
    """
    memo: dict[int, Any] = {id(held): held for held in (*shared, *_tree_structures(model))}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ReparamError(
            f"the model cannot be copied ({type(error).__name__}: {error}); pass inplace=True"
        ) from error


def _tree_structures(model: nn.Module) -> list[Any]:
    """What says how graph modules pack arguments: never changed, and torch warns of copying it."""
    return [
        spec
        for module in model.modules()
        if isinstance(module, fx.GraphModule)
        for spec in (vars(module).get("_in_spec"), vars(module).get("_out_spec"))
    ]
