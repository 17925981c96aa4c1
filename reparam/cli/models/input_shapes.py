"""Inputs of a model, by their shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reparam.errors import ReparamError
from reparam.modules import Inputs

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.int8,
        torch.uint8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.bool,
    )
}

_INTEGERS = 10
"""Random integers are below this, so that they are indices of almost any table."""


@dataclass(frozen=True)
class InputShape:
    """The shape and the type of one input.

    Args:
        sizes: The shape.
        dtype: The type.
        name: The argument of forward that it is; empty where its place says so.
    """

    sizes: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    name: str = ""

    def __str__(self) -> str:
        sizes = ",".join(map(str, self.sizes))
        dtype = str(self.dtype).removeprefix("torch.")
        shape = sizes if self.dtype == torch.float32 else f"{sizes}:{dtype}"
        return f"{self.name}={shape}" if self.name else shape

    def make(self, generator: torch.Generator) -> Tensor:
        """A random tensor: normal, integers below ten, or truth values."""
        if self.dtype == torch.bool:
            return torch.rand(self.sizes, generator=generator) < 0.5
        if self.dtype.is_floating_point:
            return torch.randn(self.sizes, generator=generator).to(self.dtype)
        return torch.randint(_INTEGERS, self.sizes, generator=generator, dtype=self.dtype)


def read_shape(text: str) -> InputShape:
    """Reads a shape such as ``1,3,224,224``, ``1,16:int64`` or ``mask=1,16:bool``.

    Raises:
        ValueError: If it is no shape, or of no known type.
    """
    name, equals, shape = text.rpartition("=")
    if equals and not name.isidentifier():
        raise ValueError(f"{name!r} is no name of an argument")
    sizes, colon, dtype = shape.partition(":")
    numbers = [size.strip() for size in sizes.split(",")]
    if not all(size.isascii() and size.isdigit() and int(size) > 0 for size in numbers):
        raise ValueError(f"{text!r} is no shape; write sizes between commas: 1,3,224,224")
    if colon and dtype not in _DTYPES:
        raise ValueError(f"{dtype!r} is none of the types {', '.join(_DTYPES)}")
    return InputShape(tuple(map(int, numbers)), _DTYPES[dtype or "float32"], name)


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
        value = shape.make(generator)
        if shape.name:
            named[shape.name] = value
        else:
            args.append(value)
    return Inputs(tuple(args), named)
