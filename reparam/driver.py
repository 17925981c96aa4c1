"""The public calls: plan a model, and apply the plan."""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from torch import Tensor, fx, nn
from torch.nn.modules.lazy import LazyModuleMixin

from reparam.affine import AffineConv
from reparam.eager import only_called
from reparam.errors import Refusal, ReparamError
from reparam.facts import Facts, fetch, gather
from reparam.graft import graft
from reparam.lifting import lift
from reparam.lowering import lower, take_after
from reparam.planner import Decision, Region, decide
from reparam.report import FusedRow, RefusedRow, Report
from reparam.rewriting import rewrite
from reparam.rules import Rules, describe_target
from reparam.rules.registry import Rule, Target
from reparam.shapes import record_shapes
from reparam.tracing import Trace, UntraceableError, has_hooks, trace
from reparam.verification import (
    REGION_BOUND,
    UnverifiableError,
    as_arguments,
    region_error,
    relative_error,
)


@dataclass(eq=False)
class _Traced:
    """One part of the model that could be traced, and what was decided for it."""

    trace: Trace
    facts: Facts
    decision: Decision


@dataclass(eq=False)
class Plan:
    """What `fuse` would do to a model: print it, look at it, apply it.

    Args:
        model: The model; it is not changed by planning.
        report: The tables that `print` shows.
    """

    model: nn.Module
    report: Report
    _options: dict[str, Any] = field(repr=False)
    _parts: list[_Traced] | None = field(repr=False)

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

    def apply(self, *, inplace: bool = False, verify: bool = True) -> nn.Module:
        """Carry the plan out.

        Args:
            inplace: Change the model itself, not a copy of it.
            verify: Compare every region in float64 before it is replaced, and leave alone what
                differs.

        Returns:
            The fused model; its report is the attribute ``reparam_report``.

        Raises:
            ReparamError: If the model cannot be copied.
        """
        parts = self._parts
        if parts is None:  # an earlier call used the traces up
            fresh = plan(self.model, **self._options)
            parts, self.report = fresh._parts or [], fresh.report
        self._parts = None
        return _apply(self.model, parts, self.report, self._options, inplace, verify)


def plan(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    rules: Mapping[Target, Rule | None] | None = None,
    cost: str = "macs",
) -> Plan:
    """Find out what can be fused, exactly and cheaper, without touching the model.

    Args:
        model: Any module in eval mode.
        example_inputs: One tensor, or a tuple of the positional arguments of ``forward``. Not
            needed, but with them shapes are known and the whole model is compared.
        rules: Rules for this call only, by module type, function, method or ATen operator; None
            switches a rule off.
        cost: What must not rise: ``"macs"``, the multiply-adds of convolutions and linear layers
            and the number of operators.

    Returns:
        The plan; print it.

    Raises:
        ReparamError: If the model is no module, is in training mode, has a lazy module that was
            never run, or if an argument is not understood.

    Examples:
        >>> import torch
        >>> import reparam
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).eval()
        >>> len(reparam.plan(model).fused)
        1
    """
    check_model(model)
    if cost != "macs":
        raise ReparamError(f"cost={cost!r} is not known; this version weighs by cost='macs'")
    active = Rules(rules)
    report = Report(type(model).__name__)
    options = {"example_inputs": example_inputs, "rules": rules, "cost": cost}
    parts: list[_Traced] = []
    pending: list[tuple[str, nn.Module]] = [("", model)]
    seen: set[int] = set()
    while pending:
        path, module = pending.pop(0)
        if id(module) in seen:
            continue
        seen.add(id(module))
        given = None
        if module is model and example_inputs is not None:
            given = _given_parameters(model, as_arguments(example_inputs))
        try:
            traced = trace(module, active, path=path, given=given)
        except UntraceableError as error:
            children = only_called(module)
            report.refused.append(RefusedRow(path or "the model", _kind(module), error.reason))
            pending.extend((_join(path, name), child) for name, child in children.items())
            continue
        shapes, dtypes = {}, {}
        if module is model and example_inputs is not None:
            shapes, dtypes = record_shapes(traced, as_arguments(example_inputs))
        facts = gather(module, traced.graph, active, shapes, dtypes)
        steps = lift(traced.graph, facts, active)
        decision = decide(traced.graph, steps, facts)
        parts.append(_Traced(traced, facts, decision))
        for node in traced.graph.nodes:
            if node.op == "call_module":
                leaf = fetch(module, str(node.target))
                if not type(leaf).__module__.startswith("torch.") and (
                    active.find(type(leaf)) is None or has_hooks(leaf)
                ):
                    pending.append((_join(path, str(node.target)), leaf))
    _leave_shared_alone(model, parts)
    for part in parts:
        _describe(part, report)
    return Plan(model, report, options, parts)


def fuse(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    inplace: bool = False,
    rules: Mapping[Target, Rule | None] | None = None,
    cost: str = "macs",
    verify: bool = True,
) -> nn.Module:
    """Replace linear branches by the one convolution that computes the same.

    Args:
        model: Any module in eval mode.
        example_inputs: One tensor, or a tuple of the positional arguments of ``forward``. Not
            needed, but with them shapes are known and the whole model is compared.
        inplace: Change the model itself, not a copy of it.
        rules: Rules for this call only; None switches a rule off.
        cost: What must not rise; see `plan`.
        verify: Compare every region in float64 before it is replaced.

    Returns:
        The fused model, an ordinary module. What was fused and what was not is its attribute
        ``reparam_report``. Where nothing can be fused, an equal copy.

    Raises:
        ReparamError: If the model is no module, is in training mode, has a lazy module that was
            never run, or if an argument is not understood.

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
    return plan(model, example_inputs, rules=rules, cost=cost).apply(
        inplace=inplace, verify=verify
    )


def check_model(model: Any) -> None:
    """Raise unless the model can be planned."""
    if not isinstance(model, nn.Module):
        hint = "; pass its .module()" if hasattr(model, "module") else ""
        raise ReparamError(f"expected a torch.nn.Module, found {type(model).__name__}{hint}")
    for name, module in model.named_modules():
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
            raise ReparamError(
                f"{name or 'the model'} ({type(module).__name__}) is lazy and was never run; run "
                "the model once on an input first"
            )
        if module.training:
            raise ReparamError(
                f"{name or 'the model'} ({type(module).__name__}) is in training mode, where "
                "batch norm depends on the batch; call model.eval() first"
            )


def _given_parameters(model: nn.Module, inputs: tuple[Any, ...]) -> set[str]:
    try:
        return set(inspect.signature(model.forward).bind(*inputs).arguments)
    except TypeError as error:
        raise ReparamError(f"example_inputs do not fit the model's forward: {error}") from None


def _leave_shared_alone(model: nn.Module, parts: list[_Traced]) -> None:
    """Refuse what lies in a module that two separately traced parts contain."""
    holders: Counter[int] = Counter()
    for part in parts:
        holders.update({id(module) for module in part.trace.root.modules()})
    for part in parts:
        nested = [other for other in parts if other is not part
                  and any(other.trace.root is module for module in part.trace.root.modules())]
        inside = {id(module) for other in nested for module in other.trace.root.modules()}
        kept: list[Region] = []
        for region in part.decision.regions:
            touched = {id(part.trace.caller[node].module) for node in region.dying}
            touched |= {
                id(fetch(part.trace.root, str(node.target)))
                for node in region.dying
                if node.op == "call_module"
            }
            if any(holders[key] > 1 and key not in inside for key in touched) and not _is_nested(
                part, parts
            ):
                part.decision.refused[region.value] = Refusal(
                    "its module is used by two parts of the model that are traced apart"
                )
                continue
            kept.append(region)
        part.decision.regions = kept


def _is_nested(part: _Traced, parts: list[_Traced]) -> bool:
    return any(
        other is not part and any(part.trace.root is module for module in other.trace.root.modules())
        for other in parts
    )


# -- Applying -------------------------------------------------------------------------------------


def _apply(
    model: nn.Module,
    parts: list[_Traced],
    report: Report,
    options: Mapping[str, Any],
    inplace: bool,
    verify: bool,
) -> nn.Module:
    report = Report(report.model, [], list(report.refused), list(report.notes))
    work = []
    for part in parts:
        operators = []
        for region in part.decision.regions:
            row = _row(part, region)
            made = _make(region, part, verify, row.place, report)
            if isinstance(made, Refusal):
                report.refused.append(RefusedRow(row.place, row.operators, made.reason))
                continue
            module, error = made
            operators.append((region, module))
            report.fused.append(replace(row, error=error))
        if operators:
            work.append((part, operators))
    target = model if inplace else _copy(model)
    rewrites = [
        (part, rewrite(part.trace, operators, part.facts)) for part, operators in work
    ]
    saved = [(module, dict(vars(module)), dict(module._modules)) for module in target.modules()]
    try:
        for part, result in rewrites:
            path = part.trace.path
            graft(result, fetch(target, path) if path else target)
        target.reparam_report = report  # type: ignore[assignment]
        _compare_whole(model, target, options, verify, inplace, report)
    except BaseException:
        for module, attributes, children in saved:
            vars(module).clear()
            vars(module).update(attributes)
            module._modules = children
        raise
    return target


def _copy(model: nn.Module) -> nn.Module:
    try:
        return deepcopy(model)
    except Exception as error:
        raise ReparamError(
            f"the model cannot be copied ({type(error).__name__}: {error}); pass inplace=True"
        ) from error


def _make(
    region: Region, part: _Traced, verify: bool, place: str, report: Report
) -> tuple[nn.Module, float | None] | Refusal:
    """Compute the weights of a region's operator, verify them, round them."""
    form = region.form
    like = form.like
    device = None if like is None else like.device
    if device is not None and device.type == "meta":
        with torch.device("meta"):
            module = lower(form, *_meta_weights(form))
        take_after(module, form)
        _note(report, "weights on the meta device: structure only, nothing was verified")
        return module, None
    with torch.no_grad():
        kernel, bias = form.weights.evaluate(device)
        for tensor in (kernel, bias):
            if tensor is not None and not bool(tensor.isfinite().all()):
                return Refusal("a weight is NaN or infinite")
        module = lower(form, kernel, bias)
        del kernel, bias
        error = None
        if verify:
            try:
                error = region_error(region, module, part.facts)
            except UnverifiableError as problem:
                return Refusal(f"it could not be verified by itself: {problem}")
            if not error <= REGION_BOUND:
                warnings.warn(
                    f"{place}: the fused operator differs by {error:.1e} and was left alone. A "
                    "rule is wrong; if it is one of reparam's, please report it",
                    stacklevel=4,
                )
                return Refusal(f"verification failed: a relative difference of {error:.1e}")
        take_after(module, form)
        if not all(bool(parameter.isfinite().all()) for parameter in module.parameters()):
            warnings.warn(
                f"{place}: the fused weights overflow {form.dtype}; it was left alone",
                stacklevel=4,
            )
            return Refusal(f"the fused weights overflow {form.dtype}")
    return module, error


def _meta_weights(form: AffineConv) -> tuple[Tensor, Tensor | None]:
    taps = [axis.kernel for axis in form.axes or ()]
    rows, columns = form.out_channels or 1, (form.in_channels or 1) // (form.groups or 1)
    kernel = torch.empty(rows, columns, *taps, dtype=torch.float64, device="meta")
    bias = torch.empty(rows, dtype=torch.float64, device="meta") if form.has_bias else None
    return kernel, bias


def _compare_whole(
    model: nn.Module,
    target: nn.Module,
    options: Mapping[str, Any],
    verify: bool,
    inplace: bool,
    report: Report,
) -> None:
    if options["example_inputs"] is None or not verify or inplace:
        return
    inputs = as_arguments(options["example_inputs"])
    with torch.no_grad():
        before = torch.utils._pytree.tree_leaves(model(*inputs))
        after = torch.utils._pytree.tree_leaves(target(*inputs))
    errors = [
        relative_error(two, one)
        for one, two in zip(before, after, strict=True)
        if isinstance(one, Tensor) and one.is_floating_point()
    ]
    if errors:
        _note(report, f"on the example inputs the outputs differ by at most {max(errors):.1e}")


def _note(report: Report, text: str) -> None:
    if text not in report.notes:
        report.notes.append(text)


# -- Describing -----------------------------------------------------------------------------------


def _describe(part: _Traced, report: Report) -> None:
    for region in part.decision.regions:
        report.fused.append(_row(part, region))
    for node, refusal in part.decision.refused.items():
        report.refused.append(
            RefusedRow(_place(part.trace, node), _operator(part.trace, node), refusal.reason)
        )


def _row(part: _Traced, region: Region) -> FusedRow:
    kinds = Counter(
        _operator(part.trace, node)
        for node in sorted(region.dying, key=part.facts.order.__getitem__)
    )
    scale = 1.0
    return FusedRow(
        _place(part.trace, region.value),
        " + ".join(f"{count} {kind}" if count > 1 else kind for kind, count in kinds.items()),
        _form_name(region.form),
        (region.before.multiply_adds * scale, region.after.multiply_adds * scale),
        (region.before.operators, region.after.operators),
    )


def _form_name(form: AffineConv) -> str:
    sizes = f"{form.in_channels} -> {form.out_channels}"
    if not form.axes:
        return f"linear {sizes}"
    taps = "x".join(str(axis.kernel) for axis in form.axes)
    kind = "transposed conv" if form.transposed else "conv"
    if form.depthwise:
        kind = f"depthwise {kind}"
        sizes = str(form.out_channels)
    elif form.groups != 1:
        sizes += f", {form.groups} groups"
    return f"{kind} {taps}, {sizes}"


def _place(trace: Trace, node: fx.Node) -> str:
    if node.op == "call_module":
        return _join(trace.path, str(node.target))
    path = _join(trace.path, trace.caller[node].path)
    return f"{path}: {node.name}" if path else node.name


def _operator(trace: Trace, node: fx.Node) -> str:
    if node.op == "call_module":
        return _kind(fetch(trace.root, str(node.target)))
    if node.op == "call_method":
        return str(node.target)
    return describe_target(node.target)


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name
