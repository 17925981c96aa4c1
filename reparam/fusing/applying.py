"""Carry a plan out: compute the new weights, verify them, and graft them into a model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from reparam.capture.programs import as_module
from reparam.errors import Refusal
from reparam.fusing.new_operators import Made, add_note, make_all
from reparam.modules.copying import LateCopy, copy_model
from reparam.modules.state import all_or_nothing
from reparam.modules.tree import fetch, join, own_tensors
from reparam.planning.parts import Part
from reparam.planning.regions import Region
from reparam.report.rows import applied_row, fused_row, refused_rows
from reparam.report.tables import RefusedRow, Report
from reparam.rewriting.changes import Rewrite
from reparam.rewriting.graft import graft
from reparam.rewriting.new_code import GraftError, TornError, UnlikeError
from reparam.rewriting.placement import frame_of
from reparam.rewriting.programs import rebuild
from reparam.rewriting.rewriter import rewrite
from reparam.verification.model_check import DifferenceError, Judge
from reparam.verification.module_check import Check, MismatchError

_UNCHECKED = (
    "every new operator was compared with what it replaces, but some modules around them could not "
    "be run by themselves; with example_inputs the whole model is compared"
)


def apply_parts(
    model: nn.Module,
    parts: list[Part],
    report: Report,
    *,
    inplace: bool,
    verify: bool,
    inputs: tuple[Any, ...] | None = None,
) -> nn.Module:
    """Fuse a model as planned.

    Args:
        model: The planned model.
        parts: Its parts; their graphs are used up.
        report: Filled with what was done.
        inplace: Change the model itself, not a copy of it.
        verify: Compare every region and every module with new code in float64, and the whole on
            the inputs.
        inputs: Example inputs of the model.
    """
    judge = Judge(model, inputs, inplace=inplace) if verify and inputs is not None else None
    operators = [make_all(part, verify, report) for part in parts]
    kinds = [
        {name: type(module) for name, module in part.trace.root.named_modules()} for part in parts
    ]
    # What dies is not copied: the copy gets memory of its own once it is fused.
    late = None if inplace else LateCopy(model)
    target = model if late is None else late.model
    try:
        with all_or_nothing(model) if inplace else nullcontext():
            for part, made, held in zip(parts, operators, kinds, strict=True):
                _apply(part, made, target, held, report, verify=verify)
            if late is not None:
                late.copy_parameters()
            if judge is not None:
                report.notes = [note for note in report.notes if note != _UNCHECKED]
                judge.compare(target, report.notes)
    except DifferenceError as problem:
        _refuse_all(report, problem)
        target = model if inplace else copy_model(model)
    vars(target)["reparam_report"] = report  # its class may forbid to set attributes
    return target


def apply_to_program(
    program: ExportedProgram,
    part: Part,
    report: Report,
    *,
    verify: bool,
    inputs: tuple[Any, ...] | None = None,
) -> ExportedProgram:
    """Fuse an exported program as planned.

    Args:
        program: The planned program; it is not changed.
        part: Its graph, which is used up.
        report: Filled with what was done.
        verify: Compare every region in float64, and the whole on the inputs.
        inputs: Example inputs; those that the program was exported with, if there are none.
    """
    made = make_all(part, verify, report)
    regions = part.decision.regions
    report.refused.extend(refused_rows(part))
    rows = [fused_row(part, region) for region in regions]
    operators = [(region, made[region.key][0]) for region in regions]
    rewritten = rewrite(part.trace, operators, part.facts)
    fused = rebuild(program, part, rewritten)
    for row, region in zip(rows, regions, strict=True):
        error, name = made[region.key][1], rewritten.names[region.value]
        report.fused.append(applied_row(row, error, name))
    called = program.example_inputs if inputs is None else (inputs, {})
    if verify and called is not None:
        try:
            Judge(as_module(program), *called).compare(as_module(fused), report.notes)
        except DifferenceError as problem:
            _refuse_all(report, problem)
            fused = copy.copy(program)
    fused.reparam_report = report  # type: ignore[attr-defined]
    return fused


def _apply(
    part: Part,
    made: dict[Any, Made],
    target: nn.Module,
    kinds: Mapping[str, type],
    report: Report,
    *,
    verify: bool,
) -> None:
    """Put one part back into the module tree; plan anew without what cannot be put back.

    Args:
        part: The part.
        made: Its operators.
        target: The module tree.
        kinds: The classes of all modules that were in the part.
        report: Filled with what was done.
        verify: Compare every module with new code.
    """
    root = _still_there(target, part.trace.path, kinds)
    if root is None:
        return  # nobody ran it, and it went with the code around it
    while True:
        regions = part.decision.regions
        refused = refused_rows(part)
        if not regions:
            report.refused.extend(refused)
            return
        rows = [fused_row(part, region) for region in regions]
        check = Check(part) if verify else None
        operators = [(region, made[region.key][0]) for region in regions]
        try:
            with all_or_nothing(root):
                rewritten = rewrite(part.trace, operators, part.facts, part.merged, part.unlike)
                grafted = graft(rewritten, root, _held(root, part.elsewhere))
                unchecked = check.run(grafted, rewritten, root) if check is not None else 0
        except GraftError as problem:
            if isinstance(problem, MismatchError):
                warnings.warn(f"{problem}; it was left alone. Please report it", stacklevel=5)
            settled = part.merged, part.unlike
            if isinstance(problem, TornError):
                part.merged |= {part.trace.calls.index(call) for call in problem.calls}
            if isinstance(problem, UnlikeError):
                part.unlike |= {id(call.module) for call in problem.calls}
            # Planned as code of its caller, or apart from other calls, it may still be.
            again = (part.merged, part.unlike) != settled
            at_fault = [] if again else _at_fault(part, problem, rewritten)
            part = part.anew(at_fault, Refusal(problem.reason))
            made = make_all(part, verify, report)
            continue
        report.refused.extend(refused)
        for row, region in zip(rows, regions, strict=True):
            error = made[region.key][1]
            name = join(part.trace.path, rewritten.names[region.value])
            report.fused.append(applied_row(row, error, name))
        if unchecked:
            add_note(report, _UNCHECKED)
        return


def _still_there(target: nn.Module, path: str, kinds: Mapping[str, type]) -> nn.Module | None:
    """The root of a part; None if an earlier part removed it, or something in it."""
    try:
        root: nn.Module | None = fetch(target, path)
    except AttributeError:
        return None
    if root is None:
        return None
    now = {name: type(module) for name, module in root.named_modules()}
    intact = all(
        name in now and (now[name] is not nn.Identity or issubclass(kind, nn.Identity))
        for name, kind in kinds.items()
    )
    return root if intact else None


def _held(root: nn.Module, paths: Collection[str]) -> set[int]:
    """Identities of some modules that are still there, and of their own tensors."""
    there = root.named_modules(remove_duplicate=False) if paths else ()
    held = [module for path, module in there if path in paths]
    return {id(part) for module in held for part in (module, *own_tensors(module).values())}


def _refuse_all(report: Report, problem: DifferenceError) -> None:
    warnings.warn(f"{problem}; the model was left as it is. Please report it", stacklevel=5)
    report.refused.extend(
        RefusedRow(row.place, row.operators, str(problem)) for row in report.fused
    )
    report.fused.clear()


def _at_fault(part: Part, problem: GraftError, rewritten: Rewrite) -> list[Region]:
    """The regions for which code changed that cannot change, or else all in its module."""
    regions, calls = part.decision.regions, set(problem.calls)
    direct = [region for region in regions if rewritten.changes[region.value] & calls]
    inside = [region for region in regions if calls & set(frame_of(part.trace, region).ancestry())]
    return direct or inside or regions
