"""`reparam bench`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

import reparam
from reparam.cli.options import Request, json_option, model_options, threads_option
from reparam.cli.printing import show, show_json
from reparam.cli.progress import working

if TYPE_CHECKING:
    from reparam.deployment import Latency


@click.command()
@model_options
@click.option("--rounds", type=click.IntRange(min=2), default=50, help="How often each form runs.")
@threads_option
@json_option
def bench(request: Request, rounds: int, threads: int, as_json: bool) -> None:
    """Measures the latency of MODEL on the CPU, as it is and fused.

    Both forms take turns in one process; how many times faster the fused one is comes first, then
    the medians with their quartiles. `reparam plan --help` lists what MODEL may be.
    """
    from torch import nn

    from reparam.cli.preparing import prepare
    from reparam.deployment import compare, cpu_threads, describe_machine
    from reparam.modules import Inputs

    with cpu_threads(threads):
        prepared = prepare(request, needs_inputs=True)
        with working("Fusing"):
            fused = reparam.fuse(prepared.model)
        model, fused = (
            form if isinstance(form, nn.Module) else form.module()
            for form in (prepared.model, fused)
        )
        given = prepared.inputs or Inputs()
        plain, quick = (partial(form, **given.kwargs) for form in (model, fused))
        with working("Measuring", rounds) as progress:
            found = compare(plain, quick, *given.args, rounds=rounds, progress=progress)
        machine = describe_machine()
    inputs = given.values
    if as_json:
        values = {
            "model": request.model,
            "speedup": found.speedup,
            "original": _values(found.original),
            "fused": _values(found.fused),
            "rounds": rounds,
            "inputs": [list(value.shape) for value in inputs],
            "machine": machine,
        }
        show_json("bench", values)
        return
    shapes = " and ".join("×".join(map(str, value.shape)) for value in inputs)
    show(
        f"{request.model}, {shapes}: fused {found.speedup:.2f} times as fast; "
        f"{found.original} as it is, {found.fused} fused"
    )
    show(f"medians (quartiles) of {rounds} alternating rounds on {machine}")


def _values(latency: Latency) -> dict[str, float]:
    return {"median": latency.median, "low": latency.low, "high": latency.high}
