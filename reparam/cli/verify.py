"""`reparam verify`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

import reparam
from reparam.cli.options import NOTHING_FUSED, Request, json_option, model_options, require_option
from reparam.cli.printing import say, show, show_json
from reparam.cli.progress import working
from reparam.errors import ReparamError

if TYPE_CHECKING:
    from reparam.cli.preparing import Prepared

_DIFFERENT = 3

_BOUND, _FLOAT64_BOUND = 1e-4, 1e-9

_TIMES_OWN = 4
"""How many times the error of the model itself the fused one may have: deep networks amplify it."""


@click.command()
@model_options
@click.option(
    "--float64",
    is_flag=True,
    help="Compare in float64, where rounding hides nothing.",
)
@click.option(
    "--bound",
    type=click.FloatRange(min=0),
    help="Largest error of the fused model, relative to the largest output.  "
    f"[default: {_BOUND:g} or {_TIMES_OWN} times the model's own error, with --float64 "
    f"{_FLOAT64_BOUND:g}]",
)
@json_option
@require_option
def verify(
    request: Request, float64: bool, bound: float | None, as_json: bool, require_fused: bool
) -> int:
    """Compares MODEL with its fused form on random inputs; exits with 3 if they differ.

    Both are compared with the original in float64. Where no batch norm of MODEL was ever trained,
    they and all constant parameters get random values first, since a fusion that forgets the
    identity would pass: --no-randomise-batch-norm leaves them. `reparam plan --help` lists what
    MODEL may be.
    """
    from reparam.cli.preparing import prepare

    prepared = prepare(request, needs_inputs=True, randomise=True)
    if float64:
        prepared = _in_float64(prepared)
    with working("Fusing"):
        fused: Any = reparam.fuse(prepared.model)
    with working("Comparing"):
        result = reparam.verify(prepared.model, fused, prepared.inputs)
    if not result.fused:
        raise ReparamError(f"{request.model} returns no tensors, so nothing can be compared")
    least = _FLOAT64_BOUND if float64 else _BOUND
    bounds = [max(least, _TIMES_OWN * own) if bound is None else bound for own in result.original]
    equal = all(error <= most for error, most in zip(result.fused, bounds, strict=True))
    places = len(fused.reparam_report.fused)
    if as_json:
        keys = ("original", "fused", "rounding", "bound")
        outputs = zip(result.original, result.fused, result.rounding, bounds, strict=True)
        values = {
            "model": request.model,
            "places": places,
            "equal": equal,
            "outputs": [dict(zip(keys, row, strict=True)) for row in outputs],
        }
        show_json("verify", values)
    else:
        verdict = "equal" if equal else "DIFFERENT"
        many = "1 place" if places == 1 else f"{places} places"
        show(f"{request.model}: {verdict} within {max(bounds):.1e}; fused in {many}")
        show(str(result))
        if not equal:
            say(_why_not(result.fused))
    if not equal:
        return _DIFFERENT
    return NOTHING_FUSED if require_fused and not places else 0


def _why_not(errors: Sequence[float]) -> str:
    """What to think of outputs that differ."""
    if any(map(math.isnan, errors)):
        return (
            "An output of the model has values that are no numbers (NaN), which equal nothing, so "
            "that it cannot be compared: look at its weights, its inputs or its type"
        )
    return "The fused model computes something else; please report it"


def _in_float64(prepared: Prepared) -> Prepared:
    import torch

    from reparam.modules import in_float64

    if not isinstance(prepared.model, torch.nn.Module):
        raise ReparamError("an exported program keeps its types; leave --float64 out")
    inputs = prepared.inputs and prepared.inputs.map(in_float64)
    return replace(prepared, model=prepared.model.to(torch.float64), inputs=inputs)
