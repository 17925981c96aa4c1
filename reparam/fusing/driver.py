"""The public calls: plan a model, and apply the plan."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any, TypeVar

from rich.console import Console, ConsoleOptions, RenderResult
from torch import Tensor, nn
from torch.export import ExportedProgram

from reparam.analysis import Part, find_parts
from reparam.errors import Refusal, ReparamError
from reparam.fusing.applying import Wishes, apply_parts, apply_to_program
from reparam.fusing.expanded import rows_of_expanded
from reparam.modules import (
    ALONE,
    AtWork,
    Choice,
    Inputs,
    as_inputs,
    check_inplace,
    check_model,
    chosen,
    join,
    likely,
    memory,
    own_tensors,
)
from reparam.planning import MACS, MEMORY, CostFunction, Folding, Measure, PlannedPart, latency
from reparam.report import (
    FusedRow,
    RefusedRow,
    Report,
    fused_row,
    refuse_all,
    refused_rows,
    untraced_row,
)
from reparam.rewriting import frame_problems
from reparam.rules import Rule, Rules, Target, load_rules
from reparam.verification import Transaction, called_with

ModelT = TypeVar("ModelT", bound=nn.Module | ExportedProgram)


@dataclass(frozen=True, eq=False)
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

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.report

    def _repr_html_(self) -> str:
        return self.report._repr_html_()

    def to_html(self, path: str | os.PathLike[str], *, verify: bool = True) -> None:
        """Write the plan as one page for a browser, which loads nothing else.

        It shows the graph before and after, for each region its branches, formula, kernels, cost
        and exactness, and every refusal. It needs ``pip install 'reparam[html]'``.

        Args:
            path: The file to write.
            verify: Compare every region in float64 with what will replace it, and show the
                difference.

        Raises:
            ReparamError: If a package is missing, or the model is not what was planned any more.

        Examples:
            >>> import tempfile
            >>> from pathlib import Path
            >>> import torch
            >>> import reparam
            >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)
            >>> page = Path(tempfile.mkdtemp(), "plan.html")
            >>> reparam.plan(torch.nn.Sequential(*layers).eval()).to_html(page)
            >>> "K<sub>0 → 1</sub> ⋆ x + c" in page.read_text(encoding="utf-8")
            True
        """
        from reparam.report.html import write_plan  # needs what not everybody installs

        current = self._current()
        with ALONE, AtWork() as work, work:
            write_plan(path, current.report, current._parts, verify=verify)

    def _current(self) -> Plan:
        """This plan, or another one if weights have changed: some forms hold what they were.

        Raises:
            ReparamError: If the model has other modules.
        """
        modules = _modules(self.model)
        if [*map(id, modules)] != [*map(id, self._modules)]:
            raise ReparamError(
                "the model has other modules than when it was planned, as after a plan that was "
                "applied in place; plan it again"
            )
        same = _weights(self.model, modules) == self._weights
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
        return self._current()._carried_out(wishes, inplace=inplace)

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
        report = _reported(current.model, parts, current._untraced, current.report, kept)
        again = partial(_again_without, self._again, places)
        return replace(current, report=report, _parts=parts, _again=again, _kept=kept)

    def _carried_out(self, wishes: Wishes, *, inplace: bool) -> Any:
        """The fused model; the weights are those that were planned."""
        notes = list(self.report.notes)
        report = Report(self.report.model, [], list(self._untraced), notes, self.report.unit)
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


def plan(
    model: nn.Module | ExportedProgram,
    example_inputs: Any = None,
    *,
    rules: Mapping[Target, Rule | None] | None = None,
    cost: str | CostFunction = "macs",
    fold_norms: bool = False,
    keep: Choice = None,
) -> Plan:
    """Find out what can be fused, exactly and cheaper, without touching the model.

    Args:
        model: Any module in eval mode, a graph module or an exported program.
        example_inputs: One tensor, a tuple of the positional arguments of ``forward``, or a mapping
            of its keyword arguments; see `fuse`. Not needed, but with them shapes are known and the
            whole model is compared.
        rules: Rules for this call only, by module type, function, method or ATen operator; None
            switches a rule off.
        cost: What must not rise, as must the number of operators not: ``"macs"``, the multiply-adds
            of convolutions and linear layers; ``"memory"``, the numbers that operators hold as
            weights and, with example inputs, write; ``"latency"``, the time that each takes by
            itself here and now, on random values of the sizes that the example inputs lead to; or a
            function that gives a number for an `Operator`.
        fold_norms: Also move the weights of layer, group and RMS norms into all that reads them,
            which saves no operator; quantisation by rotations needs it.
        keep: Modules that stay as they are, with all in them: a path, with wildcards or not, a
            type, several of these, or a function of path and module.

    Returns:
        The plan; print it.

    Raises:
        ReparamError: If the model is no module, is in training mode, has a lazy module that was
            never run, does not run on the inputs, or if an argument is not understood.

    Examples:
        >>> import torch
        >>> import reparam
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).eval()
        >>> len(reparam.plan(model).fused)
        1
    """
    return _planned(model, example_inputs, rules, cost, fold_norms, keep, trains=False)


def _planned(
    model: nn.Module | ExportedProgram,
    example_inputs: Any,
    rules: Mapping[Target, Rule | None] | None,
    cost: str | CostFunction,
    fold_norms: bool,
    keep: Choice,
    *,
    trains: bool,
) -> Plan:
    """The plan of a model, which may be in training mode if it trains."""
    check_model(model, trains=trains)
    if rules is not None and not isinstance(rules, Mapping):
        raise ReparamError(f"rules must map targets to rules, found {type(rules).__name__}")
    measure = _measure(cost)
    inputs = as_inputs(model, example_inputs)
    folding = Folding(_tied(model)) if fold_norms else None
    kept = _kept(model, keep)
    load_rules()
    with ALONE, AtWork() as work, work:
        parts, untraced = find_parts(model, Rules(rules, set(map(id, kept.values()))), inputs)
        sized = [not measure.needs_sizes or bool(part.facts.shapes) for part in parts]
        if parts and inputs is None and not any(sized):
            raise ReparamError(_NO_SIZES)
        planned = _decided(parts, [measure if known else MACS for known in sized], folding)
    rows = [untraced_row(module) for module in untraced]
    notes = [] if all(sized) else [_APART]
    names = frozenset(kept)
    told = Report(type(model).__name__, notes=notes, unit=measure.unit)
    report = _reported(model, planned, rows, told, names)
    again = partial(_planned, model, example_inputs, rules, cost, fold_norms, keep, trains=trains)
    modules = _modules(model)
    weights = _weights(model, modules)
    return Plan(model, report, rows, planned, inputs, modules, weights, again, names)


def _kept(model: nn.Module | ExportedProgram, keep: Choice) -> dict[str, nn.Module]:
    """The modules that stay as they are, and all in them, by path."""
    if keep is None:
        return {}
    if isinstance(model, ExportedProgram):
        raise ReparamError("keep= means modules, and an exported program has none")
    return {
        join(path, inner): part
        for path, module in chosen(model, keep, "keep").items()
        for inner, part in module.named_modules(remove_duplicate=False)
    }


def _reported(
    model: nn.Module | ExportedProgram,
    planned: Sequence[PlannedPart],
    untraced: Sequence[RefusedRow],
    like: Report,
    kept: frozenset[str],
) -> Report:
    """What is to be fused, and what is not, with the notes and the unit of another report."""
    report = Report(like.model, [], list(untraced), list(like.notes), like.unit)
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


def _decided(
    parts: Iterable[Part], measures: Iterable[Measure], folding: Folding | None
) -> list[PlannedPart]:
    """What is to become of the parts of a model, each weighed by its measure."""
    return [
        PlannedPart(part, frame_problems, measure, folding=folding).decided()
        for part, measure in zip(parts, measures, strict=True)
    ]


def _add_rows(report: Report, planned: Iterable[PlannedPart]) -> None:
    """Add to a report what is to be fused, and what is not."""
    for part in planned:
        report.fused.extend(fused_row(part.part, region) for region in part.decision.regions)
        report.refused.extend(refused_rows(part))


def fuse(
    model: ModelT,
    example_inputs: Any = None,
    *,
    inplace: bool = False,
    rules: Mapping[Target, Rule | None] | None = None,
    cost: str | CostFunction = "macs",
    fold_norms: bool = False,
    keep: Choice = None,
    drop_unused: bool = False,
    verify: bool = True,
    live: bool = False,
) -> ModelT:
    """Replace linear branches by the one convolution that computes the same.

    Args:
        model: Any module in eval mode, a graph module or an exported program.
        example_inputs: One tensor, a tuple of the positional arguments of ``forward``, or a mapping
            of its keyword arguments; for both at once,
            ``inspect.signature(model.forward).bind(...)``. A mapping whose keys are no arguments of
            ``forward`` is its one argument; so is the one in ``(mapping,)``, whatever its keys.
            Arguments may be containers and dataclasses of tensors, flags and names. Not needed, but
            with them shapes are known and the whole model is compared.
        inplace: Change the model itself, not a copy of it.
        rules: Rules for this call only; None switches a rule off.
        cost: What must not rise; see `plan`.
        fold_norms: Also move the weights of norms into what reads them; see `plan`.
        keep: Modules that stay as they are; see `plan`.
        drop_unused: Also take out parts with weights that eval mode never runs, or runs for
            nobody, such as auxiliary heads; the report lists them.
        verify: Compare every region in float64 before it is replaced.
        live: Let the new operators hold the parameters of their branches, under their own names,
            and compute their weights of them at every use, with gradients; see below.

    Returns:
        The fused model, of the kind that was given. What was fused and what was not is its
        attribute ``reparam_report``. Where nothing can be fused, an equal copy. `refresh` brings it
        up to date when the model was trained on.

        A live one trains its branches: the ``weight`` of a new operator is the equivalent kernel as
        a function of them, and its ``state_dict`` is that of the model. The model may be in
        training mode: what depends on the mode stays as it is in that, so that a batch norm which
        uses the statistics of its batch is not fused.

    Raises:
        ReparamError: If the model is no module, is in training mode, has a lazy module that was
            never run, does not run on the inputs, or if an argument is not understood.

    Examples:
        >>> import torch
        >>> import reparam
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).eval()
        >>> reparam.fuse(model)
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
          (1): Identity()
        )
    """
    with ALONE, AtWork() as work, work:
        if live and isinstance(model, ExportedProgram):
            raise ReparamError("an exported program cannot be live; fuse the model with live=True")
        planned = _planned(model, example_inputs, rules, cost, fold_norms, keep, trains=live)
        if inplace:
            check_inplace(model)
        if live and drop_unused:
            raise ReparamError("a live model is trained, which may need what eval mode does not")
        wishes = Wishes(verify, live, planned._kept, drop_unused)
        fused: ModelT = planned._carried_out(wishes, inplace=inplace)
    return fused


def _modules(model: nn.Module | ExportedProgram) -> tuple[nn.Module, ...]:
    """What a plan is made for; a program does not change."""
    return () if isinstance(model, ExportedProgram) else tuple(model.modules())


def _weights(model: nn.Module | ExportedProgram, modules: Sequence[nn.Module]) -> list[Any]:
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


def _tied(model: nn.Module | ExportedProgram) -> frozenset[int]:
    """Identities of the parameters and buffers that several modules of a model hold."""
    held = (own_tensors(module).values() for module in _modules(model))
    times = Counter(id(tensor) for tensor in chain.from_iterable(held))
    return frozenset(tensor for tensor, count in times.items() if count > 1)


def _measure(cost: Any) -> Measure:
    """By what a plan weighs."""
    if isinstance(cost, str) and cost in _MEASURES:
        return _MEASURES[cost]()
    if callable(cost):
        return Measure(cost, getattr(cost, "__name__", "cost"))
    known = ", ".join(map(repr, _MEASURES))
    raise ReparamError(f"cost={cost!r} is not known; give one of {known}, or a function")


_MEASURES = {"macs": lambda: MACS, "memory": lambda: MEMORY, "latency": latency}

_NO_SIZES = "cost='latency' is measured on the sizes of inputs: pass example_inputs"

_APART = (
    "parts of the model were traced apart, and the sizes in them are not known: they were weighed "
    "by multiply-adds"
)
