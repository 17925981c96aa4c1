"""Compare a whole model with its original on example inputs: is the difference rounding?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves, tree_map

from reparam.capture import as_module
from reparam.errors import ReparamError
from reparam.modules import (
    ALONE,
    AtWork,
    Widened,
    as_arguments,
    copied_values,
    copy_apart,
    in_float64,
    of_any_type,
    undisturbed,
)

EXACT_BOUND = 1e-9
"""Largest relative difference of two models in float64."""

FACTOR = 4
"""How many times the error of the original, and one rounding, a changed model may have."""


class DifferenceError(Exception):
    """A fused model is not the same as its original."""


class Judge:
    """Runs a model on example inputs before it changes, to compare what it returns after.

    In float64 two models are the same if they agree to within rounding. Else both are compared with
    the original in float64: a changed model may be a few times as far from it as the original is.
    """

    def __init__(
        self, model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]], *, inplace: bool
    ) -> None:
        self.inputs = inputs
        self.before = _results(model, inputs)
        self.model = model
        self.is_exact = all(tensor.dtype == torch.float64 for tensor in _floats(self.before))
        self.truth = self._exact() if inplace and not self.is_exact else None

    def compare(self, changed: nn.Module, notes: list[str]) -> None:
        """Run the changed model and note how far it is from the original.

        Raises:
            DifferenceError: If that is further than rounding explains.
        """
        after = _results(changed, self.inputs)
        if _layout(after) != _layout(self.before):
            raise DifferenceError(
                "on the example inputs the new model returned something of another structure"
            )
        difference = _largest(after, self.before)
        if not difference <= self._bound(after, difference):
            raise DifferenceError(
                f"on the example inputs the outputs of the new model differed by {difference:.1e}"
            )
        if _floats(self.before):
            notes.append(f"on the example inputs the outputs differ by at most {difference:.1e}")

    def _bound(self, after: list[Any], difference: float) -> float:
        if self.is_exact:
            return EXACT_BOUND
        epsilon = max((torch.finfo(t.dtype).eps for t in _floats(self.before)), default=0.0)
        if difference <= FACTOR * epsilon:
            return FACTOR * epsilon
        truth = self.truth if self.truth is not None else self._exact()
        if truth is None:
            return float("inf")
        error, own = _largest(after, truth), _largest(self.before, truth)
        return difference if error <= FACTOR * (own + epsilon) else 0.0

    def _exact(self) -> list[Any] | None:
        """The original's outputs in float64; None if it does not run in float64."""
        try:
            return _results(copy_apart(self.model).double(), tree_map(in_float64, self.inputs))
        except Exception:  # whatever the user's forward raises
            return None


def _results(model: nn.Module, inputs: Any) -> list[Any]:
    args, kwargs = copied_values(inputs)
    with torch.no_grad(), undisturbed(model):
        return tree_leaves(model(*args, **kwargs))


def _floats(leaves: Sequence[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _layout(leaves: Sequence[Any]) -> list[Any]:
    return [leaf.shape if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves]


def _largest(actual: Sequence[Any], expected: Sequence[Any]) -> float:
    pairs = zip(_floats(actual), _floats(expected), strict=True)
    return max((relative_error(*pair) for pair in pairs), default=0.0)


# -- Whole models ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verification:
    """How far two models are from the float64 truth, per output.

    Errors are ``max|y - y64| / max|y64|``, where y64 is the original run in float64.

    Args:
        rounding: The fused model run in float64: what the rounding of its weights costs; nothing
            if its weights are float64.
        original: The original model as it is.
        fused: The fused model as it is.
    """

    rounding: tuple[float, ...]
    original: tuple[float, ...]
    fused: tuple[float, ...]

    def __str__(self) -> str:
        lines = ["error against float64, per output (largest difference / largest value)"]
        for index, errors in enumerate(zip(self.rounding, self.original, self.fused, strict=True)):
            lines.append(
                f"  output {index}: original {errors[1]:.1e}, fused {errors[2]:.1e} "
                f"({errors[0]:.1e} of it from the rounding of the weights)"
            )
        return "\n".join(lines)


def verify(
    original: nn.Module | ExportedProgram, fused: nn.Module | ExportedProgram, example_inputs: Any
) -> Verification:
    """Compare a fused model with its original on given inputs, both against float64.

    Args:
        original: The model before fusion, in eval mode; an exported program will do.
        fused: The model after fusion.
        example_inputs: One tensor, or a tuple of the positional arguments of ``forward``.

    Returns:
        The largest relative error of each output tensor.

    Raises:
        ReparamError: If the two return a different number or shape of tensors.

    Examples:
        >>> import torch
        >>> import reparam
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).eval()
        >>> result = reparam.verify(model, reparam.fuse(model), torch.randn(1, 3, 8, 8))
        >>> max(result.fused) < 1e-6
        True
    """
    inputs = as_arguments(example_inputs)
    original, fused = runnable(original), runnable(fused)
    with ALONE, AtWork() as work, work, of_any_type():
        truth = _exact_outputs(original, inputs)
        runs = (
            _exact_outputs(fused, inputs),
            _outputs(original, inputs),
            _outputs(fused, inputs),
        )
    for run in runs:
        if [tensor.shape for tensor in run] != [tensor.shape for tensor in truth]:
            raise ReparamError(
                "the two models return different outputs: "
                f"{[tuple(tensor.shape) for tensor in truth]} and "
                f"{[tuple(tensor.shape) for tensor in run]}"
            )
    return Verification(*(tuple(map(relative_error, run, truth)) for run in runs))


def runnable(model: nn.Module | ExportedProgram) -> nn.Module:
    """A model, or a module that runs a program."""
    return as_module(model) if isinstance(model, ExportedProgram) else model


def relative_error(actual: Tensor, truth: Tensor) -> float:
    """The largest difference relative to the largest value."""
    if not truth.numel():
        return 0.0
    difference = float((actual.double() - truth.double()).abs().max())
    scale = float(truth.double().abs().max())
    return difference / scale if scale else difference


def _exact_outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """What a model returns in float64, also where it converts values to a smaller type."""
    with Widened():  # type: ignore[no-untyped-call]
        return _outputs(copy_apart(model).double(), tree_map(in_float64, inputs))


def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    return [leaf for leaf in _results(model, (inputs, {})) if isinstance(leaf, Tensor)]
