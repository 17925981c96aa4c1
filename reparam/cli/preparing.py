"""The model of a command, ready to be fused, and inputs that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.export import ExportedProgram

import reparam
from reparam.cli.models import (
    Built,
    build_model,
    is_untrained,
    load_weights,
    make_inputs,
    randomise_batch_norm,
)
from reparam.cli.options import Request
from reparam.cli.printing import error_line
from reparam.cli.progress import working
from reparam.errors import ReparamError
from reparam.fusing import Plan
from reparam.modules import Inputs


@dataclass(frozen=True)
class Prepared:
    """A model and what it is run on.

    Args:
        model: The model, in eval mode.
        inputs: Its arguments; None where the command needs none.
    """

    model: nn.Module | ExportedProgram
    inputs: Inputs | None


def prepare(request: Request, *, needs_inputs: bool, randomise: bool = False) -> Prepared:
    """Builds a model, loads its weights and runs it once on its inputs.

    Args:
        request: Which model.
        needs_inputs: Whether to make inputs although the user gave no shapes.
        randomise: Whether fresh batch norms get values of their own where the user does not say.

    Returns:
        The model in eval mode; inputs where the user gave shapes, the model is known to take some,
        or the command needs them.

    Raises:
        ReparamError: If the model cannot be built, its weights do not fit, it takes no such
            inputs, or their shapes are not known but needed.
    """
    with working(f"Building {request.model}"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        built = build_model(request.model, request.arguments)
        model = built.model
        if request.weights is not None:
            load_weights(model, request.weights)
        if isinstance(model, nn.Module):
            model.eval()
        inputs = _inputs(request, built, needed=needs_inputs)
        chosen = randomise if request.randomise is None else request.randomise
        if chosen and isinstance(model, nn.Module) and is_untrained(model):
            randomise_batch_norm(model, request.seed, _several(inputs))
    return Prepared(model, inputs)


def planned(prepared: Prepared, *, cost: str, fold_norms: bool, keep: Sequence[str]) -> Plan:
    """The plan of a prepared model, by the options that `plan` and `fuse` have."""
    return reparam.plan(
        prepared.model,
        prepared.inputs,
        cost=cost,
        fold_norms=fold_norms,
        keep=list(keep) or None,
    )


def _inputs(request: Request, built: Built, *, needed: bool) -> Inputs | None:
    """Inputs on which the model runs, if their shapes are given or known."""
    shapes = request.inputs or built.inputs
    if not shapes:
        if not needed:
            return None
        raise ReparamError(
            f"nothing says which inputs {request.model} takes; give the shape of each, for "
            "example --input 1,3,224,224 or --input 1,16:int64"
        )
    inputs = make_inputs(shapes, request.seed)
    try:
        _try(built.model, inputs)
    except ReparamError:
        if needed or request.inputs:
            raise
        return None  # what its library says of it does not hold for these arguments
    return inputs


def _try(model: nn.Module | ExportedProgram, inputs: Inputs) -> None:
    """Runs the model once: the error of a wrong shape is then its own."""
    call = model if isinstance(model, nn.Module) else model.module()
    try:
        with torch.no_grad():
            inputs.given_to(call)
    except Exception as error:
        shapes = " and ".join(str(tuple(value.shape)) for value in inputs.values)
        raise ReparamError(
            f"the model cannot be run on inputs of the shape {shapes} "
            f"({error_line(error)}); choose others by --input"
        ) from error


def _several(inputs: Inputs | None) -> Inputs | None:
    """Twice as many samples, mirrored: networks normalised to a single image are chaotic."""
    if inputs is None:
        return None
    return inputs.map(
        lambda value: torch.cat([value, value.flip(-1)]) if value.dim() > 1 else value
    )
