"""A plan: what is to become of a model, as a value that can be looked at and carried out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from torch import Tensor, nn
from torch.export import ExportedProgram

from reparam.errors import Refusal, ReparamError
from reparam.fusing.applying import Wishes, apply_parts, apply_to_program
from reparam.fusing.expanded import rows_of_expanded
from reparam.modules import ALONE, AtWork, Inputs, check_inplace, likely, memory, own_tensors
from reparam.planning import PlannedPart
from reparam.report import FusedRow, RefusedRow, Report, fused_row, refuse_all, refused_rows
from reparam.verification import Transaction, called_with


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """What `fuse` would do to a model: print it, look at it, apply it.

    Args:
        model: The model or exported program; it is not changed by planning.
        report: The tables that `print` shows.
    """

    model: nn.Module | ExportedProgram
    report: Report
    _untraced: list[RefusedRow] = field(repr=False)
    _parts: list[PlannedPart] = field(repr=False)
    _inputs: Inputs | None = field(repr=False)
    _modules: tuple[nn.Module, ...] = field(repr=False)
    _weights: list[Any] = field(repr=False)
    _again: Callable[[], Plan] = field(repr=False)
    _kept: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def fused(self) -> list[FusedRow]:
        """One row per value that becomes one operator."""
        return self.report.fused

    @property
    def refused(self) -> list[RefusedRow]:
        """One row per operator that stays, with the reason."""
        return self.report.refused

    def __str__(self) -> str:
        return str(self.report)

    def __repr__(self) -> str:
        return f"<Plan of {self.report.summary()}>"

    def table(
        self, depth: int | None = None, *, refused: bool = True, limit: int | None = None
    ) -> str:
        """All that is to be fused and what is refused, as text.

        Printing the plan groups the rows of a large model by its parts, and refusals by reasons.

        Args:
            depth: Group what is to be fused by the first so many names of its places; by default
                each has a row of its own.
            refused: Whether to show what is refused, too.
            limit: The most rows of each table; by default all.

        Returns:
            The tables.

        Examples:
            >>> import torch
            >>> import reparam
            >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)
            >>> print(reparam.plan(torch.nn.Sequential(*layers).eval()).table())
            Sequential: 2 operators become 1, in 1 place; refused: 0
            <BLANKLINE>
                                                                        multiply-adds
             where   was                    becomes            ops      per position
             ────────────────────────────────────────────────────────────────────────
             1       Conv2d + BatchNorm2d   conv 3x3, 3 -> 8   2 -> 1   216 -> 216
            <BLANKLINE>
        """
        return self.report.table(depth, refused=refused, limit=limit)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.report

    def _repr_html_(self) -> str:
        return self.report._repr_html_()

    def to_html(self, path: str | os.PathLike[str] | None = None, *, verify: bool = True) -> Any:
        """Write the plan as one page for a browser, which loads nothing else.

        It shows the graph before and after, in blocks that open and close, for each region its
        branches, formula, kernels, cost and exactness, and every refusal. It needs
        ``pip install 'reparam[html]'``.

        Args:
            path: The file to write; by default none.
            verify: Compare every region in float64 with what will replace it, and show the
                difference.

        Returns:
            The page: a notebook shows it where it is the last line of a cell.

        Raises:
            ReparamError: If a package is missing, or the model is not what was planned any more.

        Examples:
            >>> import tempfile
            >>> from pathlib import Path
            >>> import torch
            >>> import reparam
            >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)
            >>> page = Path(tempfile.mkdtemp(), "plan.html")
            >>> _ = reparam.plan(torch.nn.Sequential(*layers).eval()).to_html(page)
            >>> "K<sub>0 → 1</sub> ⋆ x + c" in page.read_text(encoding="utf-8")
            True
        """
        from reparam.report.html import write_plan  # needs what not everybody installs

        current = self._current()
        with ALONE, AtWork() as work, work:
            return write_plan(path, current.report, current._parts, verify=verify)

    def _current(self) -> Plan:
        """This plan, or another one if weights have changed: some forms hold what they were.

        Raises:
            ReparamError: If the model has other modules.
        """
        modules = modules_of(self.model)
        if [*map(id, modules)] != [*map(id, self._modules)]:
            raise ReparamError(
                "the model has other modules than when it was planned, as after a plan that was "
                "applied in place; plan it again"
            )
        same = weights_of(self.model, modules) == self._weights
        return self if same else self._again()

    def apply(self, *, inplace: bool = False, verify: bool = True) -> Any:
        """Carry the plan out; that can be done again and again, unless it is done in place.

        Args:
            inplace: Change the model itself, not a copy of it.
            verify: Compare every region in float64 before it is replaced, and leave alone what
                differs.

        Returns:
            The fused model, of the kind that was planned; its report is the attribute
            ``reparam_report``.

        Raises:
            ReparamError: If the model cannot be copied, cannot be changed in place, or is not what
                was planned any more.
        """
        if inplace:
            check_inplace(self.model)
        wishes = Wishes(verify, kept=self._kept)
        return self._current().carried_out(wishes, inplace=inplace)

    def without(self, *places: str) -> Plan:
        """The same plan, but for some of its rows: what they tell of stays as it is.

        Args:
            places: What `FusedRow.place` says of the rows.

        Returns:
            A plan, made anew without them: where they stood there may be smaller ones.

        Raises:
            ReparamError: If there is no such row, or the model is not what was planned any more.

        Examples:
            >>> import torch
            >>> import reparam
            >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)
            >>> plan = reparam.plan(torch.nn.Sequential(*layers).eval())
            >>> len(plan.without("1").fused)
            0
        """
        current = self._current()
        known = [row.place for row in current.fused]
        for place in places:
            if place not in known:
                raise ReparamError(
                    f"no row of the plan has the place {place!r}{likely(place, known)}"
                )
        left = Refusal("the plan was asked to do without")
        parts = []
        for planned in current._parts:
            rows = {region: fused_row(planned.part, region) for region in planned.decision.regions}
            out = {region: left for region, row in rows.items() if row.place in places}
            parts.append(planned.without(out) if out else planned)
        kept = current._kept.union(places)
        report = reported(current.model, parts, current._untraced, current.report, kept)
        again = partial(_again_without, self._again, places)
        return replace(current, report=report, _parts=parts, _again=again, _kept=kept)

    def carried_out(self, wishes: Wishes, *, inplace: bool) -> Any:
        """The fused model; the weights are those that were planned."""
        notes = list(self.report.notes)
        options = {**self.report.options, "drop_unused": wishes.drop_unused, "live": wishes.live}
        report = Report(
            self.report.model, [], list(self._untraced), notes, self.report.unit, options=options
        )
        verify = wishes.verify
        called = called_with(self.model, self._inputs) if verify else None
        transaction = Transaction(self.model, inplace, called, notes, partial(refuse_all, report))
        with ALONE, AtWork() as work, work:
            if isinstance(self.model, ExportedProgram):
                (part,) = self._parts
                fused = apply_to_program(self.model, part, report, transaction, verify=verify)
            else:
                fused = apply_parts(self.model, self._parts, report, transaction, wishes)
        vars(fused)["reparam_report"] = report  # its class may forbid to set attributes
        return fused


def reported(
    model: nn.Module | ExportedProgram,
    planned: Sequence[PlannedPart],
    untraced: Sequence[RefusedRow],
    like: Report,
    kept: frozenset[str],
) -> Report:
    """What is to be fused, and what is not, with the notes and the unit of another report."""
    report = Report(
        like.model, [], list(untraced), list(like.notes), like.unit, options=dict(like.options)
    )
    _add_rows(report, planned)
    if isinstance(model, nn.Module):
        alone = rows_of_expanded(model, planned, kept)
        report.fused.extend(alone)
        places = {row.place for row in alone}
        report.refused[:] = [row for row in report.refused if row.place not in places]
    return report


def _again_without(again: Callable[[], Plan], places: Iterable[str]) -> Plan:
    """A plan made anew, without some of its rows, where it still has them."""
    plan = again()
    return plan.without(*(row.place for row in plan.fused if row.place in set(places)))


def _add_rows(report: Report, planned: Iterable[PlannedPart]) -> None:
    """Add to a report what is to be fused, and what is not."""
    for part in planned:
        report.fused.extend(fused_row(part.part, region) for region in part.decision.regions)
        report.refused.extend(refused_rows(part))


def modules_of(model: nn.Module | ExportedProgram) -> tuple[nn.Module, ...]:
    """What a plan is made for; a program does not change."""
    return () if isinstance(model, ExportedProgram) else tuple(model.modules())


def weights_of(model: nn.Module | ExportedProgram, modules: Sequence[nn.Module]) -> list[Any]:
    """What tells whether the tensors of a model, and its mode, are as they were."""
    if isinstance(model, ExportedProgram):
        held = [*model.state_dict.items(), *model.constants.items()]
    else:
        attributes = ((*own_tensors(module).items(), *vars(module).items()) for module in modules)
        held = [*chain.from_iterable(attributes)]
    tensors = [(name, value) for name, value in held if isinstance(value, Tensor)]
    return [module.training for module in modules] + [
        (name, id(tensor), memory(tensor), tensor.dtype, tensor.device)
        + (() if tensor.is_inference() else (tensor._version,))
        for name, tensor in tensors
    ]
