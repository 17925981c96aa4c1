"""Compare a changed model with its original on example inputs, and judge the difference."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from reparam.running import copied, in_float64
from reparam.state import undisturbed
from reparam.verification import relative_error

EXACT_BOUND = 1e-9
"""Largest relative difference of two models in float64."""

FACTOR = 4
"""How many times the error of the original, and one rounding, a changed model may have."""


class DifferenceError(Exception):
    """A fused model is not the same as its original."""


class Judge:
    """Remembers what a model returns, to compare with what the changed model does.

    In float64 two models are the same if they agree to within rounding. Else both are compared with
    the original in float64: a changed model may be a few times as far from it as the original is.

    Args:
        model: The original.
        args: Example inputs.
        kwargs: Example inputs by name.
        inplace: Whether the model itself will be changed.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        *,
        inplace: bool = False,
    ) -> None:
        self.inputs = args, kwargs or {}
        self.before = _results(model, self.inputs)
        self.model = model
        self.truth: list[Any] | None = None
        if inplace and not self._is_exact():
            self.truth = self._exact()

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
        if self._is_exact():
            return EXACT_BOUND
        epsilon = max((torch.finfo(t.dtype).eps for t in _floats(self.before)), default=0.0)
        if difference <= FACTOR * epsilon:
            return FACTOR * epsilon
        truth = self.truth if self.truth is not None else self._exact()
        if truth is None:
            return float("inf")
        error, own = _largest(after, truth), _largest(self.before, truth)
        return difference if error <= FACTOR * (own + epsilon) else 0.0

    def _is_exact(self) -> bool:
        return all(tensor.dtype == torch.float64 for tensor in _floats(self.before))

    def _exact(self) -> list[Any] | None:
        """The original's outputs in float64; None if it does not run in float64."""
        try:
            return _results(deepcopy(self.model).double(), tree_map(in_float64, self.inputs))
        except Exception:  # whatever the user's forward raises
            return None


def _results(model: nn.Module, inputs: Any) -> list[Any]:
    args, kwargs = copied(inputs)
    with torch.no_grad(), undisturbed(model):
        return tree_leaves(model(*args, **kwargs))


def _floats(leaves: Sequence[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _layout(leaves: Sequence[Any]) -> list[Any]:
    return [leaf.shape if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves]


def _largest(actual: Sequence[Any], expected: Sequence[Any]) -> float:
    pairs = zip(_floats(actual), _floats(expected), strict=True)
    return max((relative_error(one, two) for one, two in pairs), default=0.0)
