"""Carry a plan out: compute the new weights, verify them, and graft them into a model."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.export import ExportedProgram

from reparam.errors import Refusal
from reparam.fusing.new_operators import Made, add_note, make_all
from reparam.fusing.vetoes import plan_allowed
from reparam.modules.copying import LateCopy
from reparam.modules.state import all_or_nothing
from reparam.modules.tree import fetch, join, own_tensors
from reparam.planning.planned_parts import PlannedPart
from reparam.planning.regions import Region
from reparam.report.rows import applied_row, fused_row, refused_rows
from reparam.report.tables import Report
from reparam.rewriting.changes import Rewrite
from reparam.rewriting.graft import graft
from reparam.rewriting.new_code import GraftError, TornError, UnlikeError
from reparam.rewriting.placement import frame_of
from reparam.rewriting.programs import rebuild
from reparam.rewriting.rewriter import Operators, rewrite
from reparam.verification.module_check import Check, MismatchError
from reparam.verification.transactions import Transaction

_UNCHECKED = (
    "every new operator was compared with what it replaces, but some modules around them could not "
    "be run by themselves; with example_inputs the whole model is compared"
)


def apply_parts(
    model: nn.Module,
    plans: Sequence[PlannedPart],
    report: Report,
    transaction: Transaction,
    *,
    inplace: bool,
) -> nn.Module:
    """Fuse a model as planned.

    Args:
        model: The planned model.
        plans: Its parts.
        report: Filled with what was done.
        transaction: Says whether to compare every region and every module with new code in float64,
            and compares the whole.
        inplace: Change the model itself, not a copy of it.
    """
    verify = transaction.verify
    made: list[dict[Hashable, Made]] = [{} for _ in plans]
    plans = [
        make_all(planned, operators, verify, report)
        for planned, operators in zip(plans, made, strict=True)
    ]
    kinds = [
        {name: type(module) for name, module in planned.part.trace.root.named_modules()}
        for planned in plans
    ]
    # What dies is not copied: the copy gets memory of its own once it is fused.
    late = None if inplace else LateCopy(model)
    target = model if late is None else late.model

    def change() -> None:
        for planned, operators, held in zip(plans, made, kinds, strict=True):
            root = _still_there(target, planned.part.trace.path, held)
            if root is not None:  # else nobody ran it, and it went with the code around it
                complete = _apply(planned, operators, root, report, verify=verify)
                if not complete and not transaction.compares:
                    add_note(report, _UNCHECKED)
        if late is not None:
            late.copy_parameters()

    return transaction.on_model(model, target, change)


def apply_to_program(
    program: ExportedProgram, planned: PlannedPart, report: Report, transaction: Transaction
) -> ExportedProgram:
    """Fuse an exported program as planned.

    Args:
        program: The planned program; it is not changed.
        planned: What it was read as.
        report: Filled with what was done.
        transaction: Says whether to compare every region in float64, and compares the whole.
    """
    made: dict[Hashable, Made] = {}
    planned = make_all(planned, made, transaction.verify, report)
    part = planned.part
    rewritten = rewrite(part.trace, _operators(planned, made), part.facts)
    fused = rebuild(program, rewritten)
    report.refused.extend(refused_rows(planned))
    report.fused.extend(
        applied_row(fused_row(part, region), made[region.key][1], rewritten.names[region.value])
        for region in planned.decision.regions
    )
    return transaction.on_program(program, part, fused)


def _apply(
    planned: PlannedPart,
    made: dict[Hashable, Made],
    root: nn.Module,
    report: Report,
    *,
    verify: bool,
) -> bool:
    """Put one part back into the module tree, planned anew without what cannot be put back.

    Args:
        planned: The part.
        made: Its operators; extended.
        root: Its root in the module tree.
        report: Filled with what was done.
        verify: Compare every module with new code.

    Returns:
        Whether every module with new code was compared.
    """
    while planned.decision.regions:
        regions, trace = planned.decision.regions, planned.part.trace
        # In place nothing is left of what the rows tell of, once it is grafted.
        refused = refused_rows(planned)
        rows = [fused_row(planned.part, region) for region in regions]
        attempt = _attempt(planned, made, root, verify=verify)
        if attempt.problem is None:
            report.refused.extend(refused)
            for row, region in zip(rows, regions, strict=True):
                name = join(trace.path, attempt.rewritten.names[region.value])
                report.fused.append(applied_row(row, made[region.key][1], name))
            return not attempt.unchecked
        if isinstance(attempt.problem, MismatchError):
            warnings.warn(f"{attempt.problem}; it was left alone. Please report it", stacklevel=7)
        planned = make_all(_replanned(attempt, attempt.problem), made, verify, report)
    report.refused.extend(refused_rows(planned))
    return True


@dataclass(frozen=True)
class _Attempt:
    """What came of putting a part back.

    Args:
        planned: The part.
        rewritten: Its edited graph.
        problem: Why the module tree is as it was, if it is.
        unchecked: How many modules with new code could not be compared.
    """

    planned: PlannedPart
    rewritten: Rewrite
    problem: GraftError | None = None
    unchecked: int = 0


def _attempt(
    planned: PlannedPart, made: Mapping[Hashable, Made], root: nn.Module, *, verify: bool
) -> _Attempt:
    """Put one part back into the module tree, if that can be."""
    part, operators = planned.part, _operators(planned, made)
    check = Check(planned) if verify else None
    rewritten = rewrite(part.trace, operators, part.facts, planned.merged, planned.unlike)
    try:
        with all_or_nothing(root):
            grafted = graft(rewritten, root, _held(root, part.elsewhere))
            unchecked = 0 if check is None else check.run(grafted, rewritten, root)
    except GraftError as problem:
        return _Attempt(planned, rewritten, problem)
    return _Attempt(planned, rewritten, unchecked=unchecked)


def _replanned(attempt: _Attempt, problem: GraftError) -> PlannedPart:
    """The part planned such that a problem does not come again."""
    planned = attempt.planned
    merged, unlike = planned.merged, planned.unlike
    if isinstance(problem, TornError):
        merged |= set(problem.calls)
    if isinstance(problem, UnlikeError):
        unlike |= {id(call.module) for call in problem.calls}
    if (merged, unlike) != (planned.merged, planned.unlike):
        # Planned as code of its caller, or apart from other calls, it may still be.
        return plan_allowed(planned.part, planned.measure, planned.banned, merged, unlike)
    reason = Refusal(problem.reason)
    at_fault = _at_fault(planned, problem, attempt.rewritten)
    return planned.without({(region.value, region.base): reason for region in at_fault})


def _at_fault(planned: PlannedPart, problem: GraftError, rewritten: Rewrite) -> list[Region]:
    """The regions for which code changed that cannot change, or else all in its module."""
    regions, trace, calls = planned.decision.regions, planned.part.trace, set(problem.calls)
    direct = [region for region in regions if rewritten.changes[region.value] & calls]
    inside = [region for region in regions if calls & set(frame_of(trace, region).ancestry())]
    return direct or inside or regions


def _operators(planned: PlannedPart, made: Mapping[Hashable, Made]) -> Operators:
    return [(region, made[region.key][0]) for region in planned.decision.regions]


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
