"""`reparam fuse`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from reparam.cli.options import (
    NOTHING_FUSED,
    Request,
    model_options,
    planning_options,
    read_by,
)
from reparam.cli.printing import say, show, show_json, show_written
from reparam.cli.progress import working
from reparam.cli.words import read_output

if TYPE_CHECKING:
    from reparam.cli.outputs import Written


@click.command()
@model_options
@click.option(
    "-o",
    "--output",
    callback=read_by(read_output),
    metavar="FILE",
    help="Write the fused model: .pt2 for an exported program, .onnx, or .safetensors for its "
    "weights.",
)
@click.option(
    "--any-batch",
    is_flag=True,
    help="Let a program take any number of samples, not that of --input.",
)
@planning_options
def fuse(
    request: Request,
    output: Path | None,
    any_batch: bool,
    cost: str,
    fold_norms: bool,
    keep: tuple[str, ...],
    as_json: bool,
    html: Path | None,
    require_fused: bool,
) -> int:
    """Fuses MODEL, and writes it.

    Programs, that is .pt2 and .onnx, are recorded on the inputs, run once, and written only if they
    return what the fused model returns; .onnx is run by onnxruntime where that is installed. Under
    --require-fused nothing is written where nothing was fused. `reparam plan --help` lists what
    MODEL may be.
    """
    from reparam.cli.outputs import needs_inputs, write_model, write_page
    from reparam.cli.preparing import planned, prepare
    from reparam.deployment import check_folder

    for path in (output, html):
        if path is not None:
            check_folder(path.parent)
    needed = cost == "latency" or (output is not None and needs_inputs(output))
    prepared = prepare(request, needs_inputs=needed)
    with working("Fusing"):
        found = planned(prepared, cost=cost, fold_norms=fold_norms, keep=keep)
        if html is not None:
            write_page(found, html)
        fused = found.apply()
    report = fused.reparam_report
    failed = require_fused and not report.fused
    written = None
    if output is not None and not failed:
        with working(f"Writing {output}"):
            written = write_model(fused, output, prepared.inputs, any_batch=any_batch)
    if as_json:
        values = {
            "model": request.model,
            **report.to_dict(),
            "output": None if written is None else str(written.path),
            "difference": None if written is None else written.difference,
        }
        show_json("fuse", values)
    else:
        show(report)
    if html is not None:
        show_written(html, ": the plan as a page", as_json=as_json)
    if written is not None:
        show_written(written.path, _content(written), as_json=as_json)
    elif not failed:
        say("Nothing was written; -o FILE writes the fused model")
    return NOTHING_FUSED if failed else 0


def _content(written: Written) -> str:
    if written.path.suffix == ".safetensors":
        return ": the fused weights"
    if written.difference is None:
        return "; not run, since onnxruntime is not installed"
    difference = f"{written.difference:.0e} of the largest output"
    return f"; run once, it differs from the fused model by {difference}"
