"""Carry a plan out: compute the new weights, verify them, and graft them into a model."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from torch import nn
from torch.export import ExportedProgram

from reparam.algebra import AffineConv, Norm
from reparam.errors import Refusal, warn
from reparam.following import (
    ATTRIBUTE,
    Bookkeeper,
    make_live,
    set_training,
    standing,
    without_dropout,
)
from reparam.fusing.expanded import collapse
from reparam.fusing.new_operators import Made, add_note, make_all
from reparam.fusing.unused_parts import drop, idle_paths, leave_out, unused_parts
from reparam.modules import LateCopy, all_or_nothing, fetch, find, join, own_registries, own_tensors
from reparam.planning import PlannedPart, Region
from reparam.report import FrozenRow, FusedRow, Report, fused_row, refused_rows
from reparam.rewriting import (
    GraftError,
    Rewrite,
    TornError,
    UnlikeError,
    frame_of,
    freeze,
    graft,
    rebuild,
    rewrite,
)
from reparam.verification import Check, MismatchError, MisreadError, Model, Transaction

_UNCHECKED = (
    "every new operator was compared with what it replaces, but modules around them could not be "
    "run by themselves ({}); with example_inputs the whole model is compared"
)


@dataclass(frozen=True)
class _Outcome:
    """What became of a part.

    Args:
        unchecked: Paths of the modules with new code that could not be compared.
        staying: Paths of what stays beside the new operators.
        operators: The region of each new operator, by its path.
        still_run: Paths of what its code calls though nobody reads what that returns.
    """

    unchecked: Set[str] = frozenset()
    staying: Sequence[str] = ()
    operators: Mapping[str, Region] = field(default_factory=dict)
    still_run: Set[str] = frozenset()


@dataclass(frozen=True)
class Wishes:
    """How a model is to be fused.

    Args:
        verify: Whether what is new is compared with what was there.
        live: Whether its weights follow those of its branches.
        kept: Paths of the modules that stay as they are.
        drop_unused: Whether what eval mode never needs goes.
    """

    verify: bool = True
    live: bool = False
    kept: frozenset[str] = frozenset()
    drop_unused: bool = False


def apply_parts(
    model: nn.Module,
    plans: Sequence[PlannedPart],
    report: Report,
    transaction: Transaction,
    wishes: Wishes,
) -> Model:
    """Fuse a model as planned; its weights follow those of its branches if it is live."""
    with without_dropout(model) as asleep:
        fused = _applied(model, plans, report, transaction, wishes)
    if isinstance(fused, nn.Module):
        set_training(fused, asleep)
    return fused


def _applied(
    model: nn.Module,
    plans: Sequence[PlannedPart],
    report: Report,
    transaction: Transaction,
    wishes: Wishes,
) -> Model:
    """The same, once the model returns the same whenever it runs."""
    verify, live = wishes.verify, wishes.live
    makings: list[dict[Hashable, Made]] = [{} for _ in plans]
    plans = [make_all(*making, verify, report) for making in zip(plans, makings, strict=True)]
    kinds = [
        {name: type(module) for name, module in planned.part.trace.root.named_modules()}
        for planned in plans
    ]
    # What dies is not copied: the copy gets memory of its own once it is fused.
    late = None if transaction.inplace else LateCopy(model)
    target = model if late is None else late.model
    bookkeeper = Bookkeeper(model, _deciding(plans))
    untraced = [row.place for row in report.refused]
    parts = [planned.part for planned in plans]
    unused = unused_parts(model, parts, untraced) if wishes.drop_unused else []

    def change() -> nn.Module:
        for module in target.modules():
            own_registries(module)
        before = standing(target) if live else {}
        unchecked, called, staying = set[str](), set[str](), list[str]()
        operators: dict[str, tuple[AffineConv, Norm | None]] = {}
        for planned, made, held in zip(plans, makings, kinds, strict=True):
            root = _still_there(target, planned.part.trace.path, held)
            if root is not None:  # else nobody ran it, and it went with the code around it
                outcome = _apply(planned, made, root, report, wishes)
                unchecked |= outcome.unchecked
                called |= outcome.still_run
                staying += outcome.staying
                for place, region in outcome.operators.items():
                    operators[place] = region.form, region.norm
        operators |= {
            path: (form, None)
            for path, form in collapse(model, target, report, wishes.kept).items()
        }
        if unchecked and transaction.called is None:
            add_note(report, _UNCHECKED.format(", ".join(sorted(unchecked))))
        drop(target, [row for row in unused if row.place not in called], report)
        there = {path: form for path, form in operators.items() if find(target, path) is not None}
        book = bookkeeper.book(there)
        vars(target)[ATTRIBUTE] = book
        staying = [path for path in staying if find(target, path) is not None]
        if live:
            make_live(target, book.operators, before, staying)
        if late is not None:
            late.copy_parameters()
        if live:  # what stays follows the same parameters
            return target
        kinds_of = {path: type(fetch(target, path)).__name__ for path in staying}
        for path, names in freeze(target, staying).items():
            report.frozen.append(FrozenRow(path, kinds_of[path], tuple(names)))
        return target

    fused = transaction.run(change)
    if fused is not target or not report.fused:
        vars(fused)[ATTRIBUTE] = bookkeeper.book({})
    return fused


def _deciding(plans: Sequence[PlannedPart]) -> frozenset[str]:
    """The names of the tensors whose numbers decided what the code of a model does."""
    return frozenset(
        join(planned.part.trace.path, name)
        for planned in plans
        for call in planned.part.trace.calls
        for name in (*call.asked, *call.deciding)
    )


def apply_to_program(
    program: ExportedProgram,
    planned: PlannedPart,
    report: Report,
    transaction: Transaction,
    *,
    verify: bool,
) -> Model:
    """Fuse an exported program as planned."""
    made: dict[Hashable, Made] = {}
    planned = make_all(planned, made, verify, report)
    rewritten = _rewrite(planned, made)
    report.refused.extend(refused_rows(planned))
    report.fused.extend(_rows(planned, made, rewritten))
    return transaction.run(lambda: rebuild(program, rewritten))


def _apply(
    planned: PlannedPart,
    made: dict[Hashable, Made],
    root: nn.Module,
    report: Report,
    wishes: Wishes,
) -> _Outcome:
    """Put one part back into the module tree, planned anew without what cannot be put back."""
    verify = wishes.verify
    idle = wishes.drop_unused and bool(idle_paths(planned.part))
    still_run: set[str] = set()
    while planned.decision.regions or idle:
        rewritten = _rewrite(planned, made)
        if idle:
            leave_out(rewritten, planned.part)
        # In place, nothing is left of what the rows tell of once it is put back.
        refused, fused = refused_rows(planned), _rows(planned, made, rewritten)
        check = Check(planned, rewritten) if verify else None
        try:
            unchecked = [] if check is None else check.run_originals()
            with all_or_nothing(root):
                grafted = graft(rewritten, root, _held(root, planned.part.elsewhere))
                unchecked += [] if check is None else check.run(grafted.gone, root)
        except GraftError as problem:
            if idle:  # it may be the code without them that cannot be put back
                idle = False
                still_run = set(idle_paths(planned.part))
                continue
            if isinstance(problem, MismatchError):
                warn(f"{problem}; it was left alone. Please report it")
            planned = make_all(_replanned(planned, rewritten, problem), made, verify, report)
            continue
        report.refused.extend(refused)
        report.fused.extend(fused)
        path = planned.part.trace.path
        return _Outcome(
            {join(path, call.path) or "the model" for call in unchecked},
            [join(path, staying) for staying in grafted.staying],
            {
                join(path, rewritten.names[region.value]): region
                for region in planned.decision.regions
            },
            still_run,
        )
    report.refused.extend(refused_rows(planned))
    return _Outcome(still_run=still_run)


def _rewrite(planned: PlannedPart, made: Mapping[Hashable, Made]) -> Rewrite:
    part = planned.part
    operators = [(region, made[region.key][0]) for region in planned.decision.regions]
    return rewrite(part.trace, operators, part.facts, planned.merged, planned.unlike)


def _rows(
    planned: PlannedPart, made: Mapping[Hashable, Made], rewritten: Rewrite
) -> list[FusedRow]:
    """The rows of the regions once they are operators."""
    path, names = planned.part.trace.path, rewritten.names
    return [
        replace(
            fused_row(planned.part, region),
            error=made[region.key][1],
            name=join(path, names[region.value]),
        )
        for region in planned.decision.regions
    ]


def _replanned(planned: PlannedPart, rewritten: Rewrite, problem: GraftError) -> PlannedPart:
    """The part, planned such that a problem does not come again."""
    merged, unlike = planned.merged, planned.unlike
    if isinstance(problem, TornError):
        merged |= set(problem.calls)
    if isinstance(problem, UnlikeError):
        unlike |= {id(call.module) for call in problem.calls}
    if (merged, unlike) != (planned.merged, planned.unlike):
        # Planned as code of its caller, or apart from other calls, it may still be.
        return replace(planned, merged=merged, unlike=unlike).decided()
    reason = Refusal(problem.reason)
    return planned.without(dict.fromkeys(_at_fault(planned, rewritten, problem), reason))


def _at_fault(planned: PlannedPart, rewritten: Rewrite, problem: GraftError) -> list[Region]:
    """The regions for which code changed that cannot change, or else all in its module."""
    regions, trace, calls = planned.decision.regions, planned.part.trace, set(problem.calls)
    direct = [region for region in regions if rewritten.changes[region.value] & calls]
    if isinstance(problem, MisreadError):  # what it calls may be right
        own = [region for region in regions if frame_of(trace, region) in calls]
        return [region for region in regions if region in direct or region in own]
    inside = [region for region in regions if calls & set(frame_of(trace, region).ancestry())]
    return direct or inside or regions


def _still_there(target: nn.Module, path: str, kinds: Mapping[str, type]) -> nn.Module | None:
    """The root of a part; None if an earlier part removed it, or something in it."""
    root: nn.Module | None = find(target, path)
    if root is None:
        return None
    now = {name: type(module) for name, module in root.named_modules()}
    intact = all(
        name in now and (not issubclass(now[name], nn.Identity) or issubclass(kind, nn.Identity))
        for name, kind in kinds.items()
    )
    return root if intact else None


def _held(root: nn.Module, paths: Collection[str]) -> set[int]:
    """Identities of some modules that are still there, and of their own tensors."""
    there = root.named_modules(remove_duplicate=False) if paths else ()
    held = [module for path, module in there if path in paths]
    return {id(part) for module in held for part in (module, *own_tensors(module).values())}
