"""The inputs that a model was fused with, as far as shapes and types tell them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reparam.modules import Inputs

Given = list[list[Any]]
"""For each input its name, or nothing where its place says which it is, its shape and type."""


def tensors_given(inputs: Inputs | None) -> Given | None:
    """What tells the inputs of a call; None if they are more than tensors, nothing if none are."""
    if inputs is None:
        return []
    named = [*(("", value) for value in inputs.args), *inputs.kwargs.items()]
    if not all(isinstance(value, Tensor) for _, value in named):
        return None
    return [
        [name, list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in named
    ]


def tensors_like(given: Given) -> Inputs | None:
    """Inputs of these shapes and types: random numbers, or zeros where they are no floats."""
    if not given:
        return None
    made = [(name, _tensor(sizes, getattr(torch, dtype))) for name, sizes, dtype in given]
    named = {name: value for name, value in made if name}
    return Inputs(tuple(value for name, value in made if not name), named)


def _tensor(sizes: list[int], dtype: torch.dtype) -> Tensor:
    if not dtype.is_floating_point:
        return torch.zeros(sizes, dtype=dtype)
    return torch.randn(sizes, generator=torch.Generator().manual_seed(0)).to(dtype)
