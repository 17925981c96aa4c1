"""Inputs of a model, by their shapes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reparam.cli.words import InputShape
from reparam.errors import ReparamError
from reparam.modules import Inputs

_INTEGERS = 10
"""Random integers are below this, so that they are indices of almost any table."""


def make_inputs(shapes: Sequence[InputShape], seed: int) -> Inputs:
    """Random inputs of these shapes, the same for the same seed.

    Raises:
        ReparamError: If two have one name.
    """
    generator = torch.Generator().manual_seed(seed)
    args: list[Tensor] = []
    named: dict[str, Tensor] = {}
    for shape in shapes:
        if shape.name in named:
            raise ReparamError(f"--input {shape.name} is given twice")
        value = _random(shape, generator)
        if shape.name:
            named[shape.name] = value
        else:
            args.append(value)
    return Inputs(tuple(args), named)


def shape_of(tensor: Tensor, name: str = "") -> InputShape:
    """The shape that describes a tensor."""
    return InputShape(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), name)


def _random(shape: InputShape, generator: torch.Generator) -> Tensor:
    """A random tensor: normal, integers below ten, or truth values."""
    dtype: torch.dtype = getattr(torch, shape.dtype)
    if dtype == torch.bool:
        return torch.rand(shape.sizes, generator=generator) < 0.5
    if dtype.is_floating_point:
        return torch.randn(shape.sizes, generator=generator).to(dtype)
    return torch.randint(_INTEGERS, shape.sizes, generator=generator, dtype=dtype)
