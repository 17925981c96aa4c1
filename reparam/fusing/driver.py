"""The public calls: plan a model, and apply the plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from itertools import chain
from typing import Any, TypeVar

from torch import nn
from torch.export import ExportedProgram

from reparam.analysis import Part, find_parts
from reparam.errors import ReparamError
from reparam.following import is_live
from reparam.fusing.applying import Wishes
from reparam.fusing.plans import Plan, modules_of, reported, weights_of
from reparam.fusing.tensors_given import tensors_given
from reparam.modules import (
    ALONE,
    AtWork,
    Choice,
    as_inputs,
    check_inplace,
    check_model,
    chosen,
    join,
    own_tensors,
)
from reparam.planning import (
    MACS,
    MEMORY,
    Basis,
    CostFunction,
    Folding,
    Measure,
    PlannedPart,
    latency,
)
from reparam.report import (
    Report,
    untraced_row,
)
from reparam.rewriting import frame_problems
from reparam.rules import Rule, Rules, Target, load_rules

ModelT = TypeVar("ModelT", bound=nn.Module | ExportedProgram)


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
    named = model.named_modules() if isinstance(model, nn.Module) else ()
    live = next((path for path, module in named if is_live(module)), None)
    if live is not None:
        raise ReparamError(
            f"{live} is live already: `refresh(fused, live)` deploys it, where `fused` is what "
            "`fuse` made of the same model without live=True"
        )
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
    notes += _bases(planned)
    names = frozenset(kept)
    options = {
        "cost": cost if isinstance(cost, str) else measure.unit,
        "fold_norms": fold_norms,
        "keep": _outermost(kept),
        "rules": bool(rules),
        "inputs": tensors_given(inputs),
    }
    told = Report(type(model).__name__, notes=notes, unit=measure.unit, options=options)
    report = reported(model, planned, rows, told, names)
    again = partial(_planned, model, example_inputs, rules, cost, fold_norms, keep, trains=trains)
    modules = modules_of(model)
    weights = weights_of(model, modules)
    return Plan(model, report, rows, planned, inputs, modules, weights, again, names)


def _bases(plans: Iterable[PlannedPart]) -> list[str]:
    """What tells how it is known that operators are not slower, if their times were asked for."""
    regions = [region for planned in plans for region in planned.decision.regions]
    known = Counter(region.basis.value for region in regions if region.basis is not Basis.COUNTED)
    ways = "; ".join(f"{basis} ({number})" for basis, number in known.items())
    return [f"how it is known that new operators are not slower: {ways}"] if ways else []


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


def _outermost(paths: Collection[str]) -> list[str]:
    """The paths of modules that are in none of the others."""
    held = set(paths)
    return [
        path
        for path in paths
        if held.isdisjoint(path[:end] for end, sign in enumerate(path) if sign == ".")
    ]


def _decided(
    parts: Iterable[Part], measures: Iterable[Measure], folding: Folding | None
) -> list[PlannedPart]:
    """What is to become of the parts of a model, each weighed by its measure."""
    return [
        PlannedPart(part, frame_problems, measure, folding=folding).decided()
        for part, measure in zip(parts, measures, strict=True)
    ]


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
    if live and isinstance(model, ExportedProgram):
        raise ReparamError("an exported program cannot be live; fuse the model with live=True")
    if live and drop_unused:
        raise ReparamError("a live model is trained, which may need what eval mode does not")
    with ALONE, AtWork() as work, work:
        planned = _planned(model, example_inputs, rules, cost, fold_norms, keep, trains=live)
        if inplace:
            check_inplace(model)
        wishes = Wishes(verify, live, planned._kept, drop_unused)
        fused: ModelT = planned.carried_out(wishes, inplace=inplace)
    return fused


def _tied(model: nn.Module | ExportedProgram) -> frozenset[int]:
    """Identities of the parameters and buffers that several modules of a model hold."""
    held = (own_tensors(module).values() for module in modules_of(model))
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
