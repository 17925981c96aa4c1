"""How far outputs are from those of the same network in float64."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

FLOAT64_BOUND = 1e-9
"""Where two float64 networks of some hundred layers count as equal."""


def float64_inputs(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Copies of the inputs, floating point tensors as float64."""
    return tree_map(_to_float64, tuple(inputs))


def float64_twin(model: nn.Module) -> nn.Module:
    """A copy of the model that computes in float64."""
    return deepcopy(model).double()


def run(model: nn.Module, inputs: Sequence[Any]) -> Any:
    """The model's output for copies of the inputs, without gradients."""
    with torch.no_grad():
        return model(*deepcopy(tuple(inputs)))


def relative_errors(y: Any, y64: Any) -> list[float]:
    """max|y − y64| / max|y64| for each tensor in an output of any structure.

    Raises:
        AssertionError: Structures, shapes or other leaves differ, or the reference is not finite.
    """
    leaves, structure = tree_flatten(y)
    leaves64, structure64 = tree_flatten(y64)
    assert structure == structure64, f"output {structure} instead of {structure64}"
    return [_relative_error(a, b) for a, b in zip(leaves, leaves64, strict=True)]


def relative_error(y: Any, y64: Any) -> float:
    """The largest of `relative_errors`."""
    return max(relative_errors(y, y64), default=0.0)


def median_error(y: Tensor, y64: Tensor) -> float:
    """max|y − y64| / max|y64| of the middle image of a batch.

    Where two forms are compared: with random weights some networks amplify the rounding of single
    images ten-thousandfold (near ties in an attention), and then luck decides the largest error.
    """
    errors = (y.double() - y64).flatten(1).abs().amax(1) / y64.flatten(1).abs().amax(1)
    return float(errors.median())


def _to_float64(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.double() if leaf.is_floating_point() else leaf.clone()
    return leaf


def _relative_error(y: Any, y64: Any) -> float:
    if not isinstance(y64, Tensor):
        assert type(y) is type(y64), f"{type(y)} instead of {type(y64)}"
        assert y == y64, f"{y} instead of {y64}"
        return 0.0
    assert isinstance(y, Tensor), f"{type(y)} instead of a tensor"
    assert y.shape == y64.shape, f"shape {tuple(y.shape)} instead of {tuple(y64.shape)}"
    if not y64.is_floating_point():
        assert torch.equal(y, y64), "a tensor that is not floating point differs"
        return 0.0
    assert y.is_floating_point(), f"{y.dtype} instead of {y64.dtype}"
    if y64.numel() == 0:
        return 0.0
    y64 = y64.double()
    assert y64.isfinite().all(), "the reference is not finite"
    difference, size = float((y.double() - y64).abs().max()), float(y64.abs().max())
    return difference / size if size else difference
