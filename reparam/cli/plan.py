"""`reparam plan`."""

from __future__ import annotations

from pathlib import Path

import click

from reparam.cli.options import (
    NOTHING_FUSED,
    Request,
    model_options,
    planning_options,
)
from reparam.cli.printing import show, show_json, show_written
from reparam.cli.progress import working


@click.command()
@model_options
@planning_options
def plan(
    request: Request,
    cost: str,
    fold_norms: bool,
    keep: tuple[str, ...],
    as_json: bool,
    html: Path | None,
    require_fused: bool,
) -> int:
    """Shows what fusing MODEL would do, and changes nothing.

    One row for each value that becomes a single operator, and one for each operator that stays,
    with the reason. Inputs are not needed; with --input, multiply-adds are those of these inputs.

    \b
    MODEL is one of
      timm/NAME              a network of timm
      torchvision/NAME       a network of torchvision
      hf/MODEL_TYPE          of transformers, by the default configuration of that type
      hf/FOLDER              of transformers, by config.json in a folder, and its weights if any
      ultralytics/FILE.yaml  a description, here or in ultralytics
      package.module:factory what a function returns; takes --arg
      FILE.pt2               what torch.export.save wrote
    """  # noqa: D301
    from reparam.cli.outputs import write_page
    from reparam.cli.preparing import planned, prepare
    from reparam.deployment import check_folder

    if html is not None:
        check_folder(html.parent)
    prepared = prepare(request, needs_inputs=cost == "latency")
    with working("Planning"):
        found = planned(prepared, cost=cost, fold_norms=fold_norms, keep=keep)
        if html is not None:
            write_page(found, html)
    if as_json:
        show_json("plan", {"model": request.model, **found.report.to_dict()})
    else:
        show(found)
    if html is not None:
        show_written(html, ": the plan as a page", as_json=as_json)
    return NOTHING_FUSED if require_fused and not found.fused else 0
