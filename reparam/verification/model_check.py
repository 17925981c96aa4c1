"""Compare a whole model with its original on example inputs: is the difference rounding?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from reparam.capture import as_module
from reparam.errors import ReparamError
from reparam.modules import (
    ALONE,
    AtWork,
    Inputs,
    Widened,
    as_inputs,
    copy_apart,
    in_float64,
    leaves_of,
    of_any_type,
    tensors_held,
    undisturbed,
    users_threads,
    widen,
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
    What holds for these inputs alone, or for one mode of torch, is no proof: if the model also runs
    on another batch and on another size, the changed one must do there what it does.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, *, inplace: bool) -> None:
        self.model = model
        self.trials = [_Trial("", torch.no_grad, inputs, _results(model, inputs))]
        for where, mode, change in _OTHERS:
            others = inputs.map(change)
            with suppress(Exception):  # it need not run on these
                before = _results(model, others, mode)
                # Of nothing, cut out of a small image, a convolution may be the error that it is.
                if _is_empty(before) == _is_empty(self.trials[0].before):
                    self.trials.append(_Trial(where, mode, others, before))
        exact = all(tensor.dtype == torch.float64 for tensor in _floats(self.trials[0].before))
        self.is_exact = exact
        truths = [self._exact(trial) for trial in self.trials] if inplace and not exact else []
        self.truths = dict(enumerate(truths))

    def compare(self, changed: nn.Module, notes: list[str]) -> None:
        """Run the changed model and note how far it is from the original.

        Raises:
            DifferenceError: If that is further than rounding explains.
        """
        for index, trial in enumerate(self.trials):
            after = self._after(changed, trial)
            if _layout(after) != _layout(trial.before):
                raise DifferenceError(
                    f"on the example inputs{trial.where} the new model returned something of "
                    "another structure"
                )
            difference = _largest(after, trial.before)
            if not difference <= self._bound(index, after, difference):
                raise DifferenceError(
                    f"on the example inputs{trial.where} the outputs of the new model differed by "
                    f"{difference:.1e}"
                )
            if index == 0 and _floats(trial.before):
                notes.append(
                    f"on the example inputs the outputs differ by at most {difference:.1e}"
                )

    def _after(self, changed: nn.Module, trial: _Trial) -> list[Any]:
        """What the changed model returns where the original ran.

        Raises:
            DifferenceError: If it does not run.
        """
        try:
            return _results(changed, trial.inputs, trial.mode)
        except Exception as error:
            raise DifferenceError(
                f"on the example inputs{trial.where} the new model raised "
                f"{type(error).__name__}: {error}"
            ) from error

    def _bound(self, index: int, after: list[Any], difference: float) -> float:
        if self.is_exact:
            return EXACT_BOUND
        trial = self.trials[index]
        epsilon = max((torch.finfo(t.dtype).eps for t in _floats(trial.before)), default=0.0)
        if difference <= FACTOR * epsilon:
            return FACTOR * epsilon
        truth = self.truths[index] if self.truths else self._exact(trial)
        if truth is None:
            return float("inf")
        error, own = _largest(after, truth), _largest(trial.before, truth)
        return difference if error <= FACTOR * (own + epsilon) else 0.0

    def _exact(self, trial: _Trial) -> list[Any] | None:
        """The original's outputs in float64; None if it does not run in float64."""
        try:
            return _exact_results(self.model, trial.inputs, trial.mode)[0]
        except Exception:  # whatever the user's forward raises
            return None


@dataclass(frozen=True)
class _Trial:
    """One run of the original.

    Args:
        where: How its inputs differ from the example, in words.
        mode: The mode of torch that it ran in.
        inputs: The arguments.
        before: All that was returned.
    """

    where: str
    mode: Callable[[], Any]
    inputs: Inputs
    before: list[Any]


def _other_batch(value: Any) -> Any:
    """One sample of a batch, or two of one, as images lie in memory where that is quick."""
    if not isinstance(value, Tensor) or not value.dim():
        return value
    other = value[:1] if len(value) > 1 else torch.cat([value, value])
    return other.to(memory_format=torch.channels_last) if other.dim() == 4 else other


def _half_size(value: Any) -> Any:
    """An image of half the size."""
    if not isinstance(value, Tensor) or value.dim() != 4:
        return value
    return value[..., : max(value.shape[2] // 2, 1), : max(value.shape[3] // 2, 1)]


_OTHERS: list[tuple[str, Callable[[], Any], Callable[[Any], Any]]] = [
    (", in another batch and with gradients,", torch.enable_grad, _other_batch),
    (", of half the size and in inference mode,", torch.inference_mode, _half_size),
]


def _results(
    model: nn.Module, inputs: Inputs, mode: Callable[[], Any] = torch.no_grad
) -> list[Any]:
    copied = inputs.copied()
    # The user's own model: it runs on the user's threads, too, which decide how it rounds.
    with mode(), undisturbed(model), catch_warnings(), users_threads():
        simplefilter("ignore")  # what the model warns of, it warns of when its user runs it
        leaves = leaves_of(copied.given_to(model))
    return [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _floats(leaves: Sequence[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _is_empty(leaves: Sequence[Any]) -> bool:
    return any(isinstance(leaf, Tensor) and not leaf.numel() for leaf in leaves)


def _layout(leaves: Sequence[Any]) -> list[Any]:
    return [leaf.shape if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves]


def _largest(actual: Sequence[Any], expected: Sequence[Any]) -> float:
    pairs = zip(_floats(actual), _floats(expected), strict=True)
    return max((relative_error(*pair) for pair in pairs), default=0.0)


# -- Whole models ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verification:
    """How far two models are from the float64 truth, per output.

    Errors are ``max|y - y64| / max|y64|``, where y64 is the original run in float64. Where it does
    not run so, the fused model is compared with the original as it is, and the other errors are
    NaN.

    Args:
        rounding: The fused model run in float64: what the rounding of its weights costs; nothing
            if its weights are float64.
        original: The original model as it is.
        fused: The fused model as it is.
        notes: What could not be compared, or not in float64, and why.
    """

    rounding: tuple[float, ...]
    original: tuple[float, ...]
    fused: tuple[float, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = ["error against float64, per output (largest difference / largest value)"]
        for index, errors in enumerate(zip(self.rounding, self.original, self.fused, strict=True)):
            lines.append(
                f"  output {index}: original {errors[1]:.1e}, fused {errors[2]:.1e} "
                f"({errors[0]:.1e} of it from the rounding of the weights)"
            )
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def verify(
    original: nn.Module | ExportedProgram, fused: nn.Module | ExportedProgram, example_inputs: Any
) -> Verification:
    """Compare a fused model with its original on given inputs, both against float64.

    Args:
        original: The model before fusion, in eval mode; an exported program will do.
        fused: The model after fusion.
        example_inputs: One tensor, a tuple of the positional arguments of ``forward``, or a mapping
            of its keyword arguments; see `reparam.fuse`.

    Returns:
        The largest relative error of each output tensor.

    Raises:
        ReparamError: If one of the two does not run, or they return a different number or shape of
            tensors.

    Examples:
        >>> import torch
        >>> import reparam
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).eval()
        >>> result = reparam.verify(model, reparam.fuse(model), torch.randn(1, 3, 8, 8))
        >>> max(result.fused) < 1e-6
        True
    """
    inputs = as_inputs(original, example_inputs) or Inputs((None,))
    models = {"original": runnable(original), "fused model": runnable(fused)}
    notes: dict[str, None] = {}
    runs, exact = [], []
    with ALONE, AtWork() as work, work, of_any_type():
        for name, model in models.items():
            runs.append(_tensors(_as_it_is(name, model, inputs), notes))
            exact.append(_in_float64(name, model, inputs, notes))
    before, after = runs
    if _shapes(before) != _shapes(after):
        raise ReparamError(
            f"the two models return different outputs: {_shapes(before)} and {_shapes(after)}"
        )
    truth, rounded = (tensors if _shapes(tensors) == _shapes(before) else None for tensors in exact)
    unknown = (float("nan"),) * len(before)
    if truth is None:
        notes["the fused model is compared with the original as it is"] = None
        return Verification(unknown, unknown, _errors(after, before, notes), tuple(notes))
    rounding = unknown if rounded is None else _errors(rounded, truth, notes)
    own, fused_errors = (_errors(run, truth, notes) for run in runs)
    return Verification(rounding, own, fused_errors, tuple(notes))


def runnable(model: nn.Module | ExportedProgram) -> nn.Module:
    """A model, or a module that runs a program."""
    return as_module(model) if isinstance(model, ExportedProgram) else model


def relative_error(actual: Tensor, truth: Tensor) -> float:
    """The largest difference relative to the largest value; equal infinities differ by nothing."""
    if not truth.numel():
        return 0.0
    actual, truth = actual.double(), truth.double()
    difference, scale = float((actual - truth).abs().max()), float(truth.abs().max())
    if not isfinite(difference):
        same = (actual == truth) & truth.isinf()
        difference = float((actual - truth).masked_fill(same, 0).abs().max())
        scale = float(truth.masked_fill(truth.isinf(), 0).abs().max())
    return difference / scale if scale else difference


def _as_it_is(name: str, model: nn.Module, inputs: Inputs) -> list[Any]:
    """What one of two models returns in its own type."""
    try:
        return _results(model, inputs)
    except Exception as error:
        raise ReparamError(
            f"the {name} does not run on example_inputs ({type(error).__name__}: {error})"
            f"{inputs.remark}"
        ) from error


def _in_float64(
    name: str, model: nn.Module, inputs: Inputs, notes: dict[str, None]
) -> list[Tensor] | None:
    """What one of two models returns in float64; None if it does not run so."""
    try:
        leaves, narrow = _exact_results(model, inputs)
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0][:160]
        notes[f"the {name} does not run in float64 ({type(error).__name__}: {reason})"] = None
        return None
    for operator in narrow:
        reason = "the reference has what it returns in float32"
        notes[f"{operator} does not run in float64: {reason}"] = None
    return _tensors(leaves, {})


def _exact_results(
    model: nn.Module, inputs: Inputs, mode: Callable[[], Any] = torch.no_grad
) -> tuple[list[Any], Collection[str]]:
    """What a model returns in float64, also where its code asks for a smaller type.

    And the operators that only run in a smaller type.
    """
    exact = copy_apart(model).double()
    widen(tensors_held(exact))
    with Widened() as widened:
        leaves = _results(exact, inputs.map(in_float64), mode)
    return leaves, widened.narrow


def _tensors(leaves: Iterable[Any], notes: dict[str, None]) -> list[Tensor]:
    """The tensors that a model returned; what is none is noted, if somebody could miss it."""
    tensors: list[Tensor] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            tensors.append(leaf)
        elif leaf is not None and not isinstance(leaf, str):
            notes[f"an output of class {type(leaf).__name__} was not compared"] = None
    return tensors


def _shapes(tensors: Sequence[Tensor] | None) -> list[tuple[int, ...]] | None:
    return None if tensors is None else [tuple(tensor.shape) for tensor in tensors]


def _errors(
    actual: Sequence[Tensor], truth: Sequence[Tensor], notes: dict[str, None]
) -> tuple[float, ...]:
    """The error of each output; NaN and a note for those that cannot be compared."""
    errors: list[float] = []
    for index, pair in enumerate(zip(actual, truth, strict=True)):
        try:
            errors.append(relative_error(*map(_comparable, pair)))
        except Exception as error:
            reason = str(error).strip().split("\n", 1)[0][:160]
            notes[f"output {index} was not compared ({type(error).__name__}: {reason})"] = None
            errors.append(float("nan"))
    return tuple(errors)


def _comparable(tensor: Tensor) -> Tensor:
    """The numbers of a tensor of whatever layout, as real ones."""
    dense = tensor.dequantize() if tensor.is_quantized else tensor
    dense = dense.to_dense() if dense.layout is not torch.strided else dense
    return torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense
