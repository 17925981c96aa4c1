"""The public calls: plan a model, and apply the plan."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from torch import fx, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from reparam.applying import apply_parts, compare_whole
from reparam.describing import fused_row, refused_rows, untraced_row
from reparam.errors import ReparamError
from reparam.parts import Part, find_parts
from reparam.report import FusedRow, RefusedRow, Report
from reparam.rules import Rules
from reparam.rules.registry import Rule, Target
from reparam.verification import as_arguments


@dataclass(eq=False)
class Plan:
    """What `fuse` would do to a model: print it, look at it, apply it.

    Args:
        model: The model; it is not changed by planning.
        report: The tables that `print` shows.
    """

    model: nn.Module
    report: Report
    _untraced: list[RefusedRow] = field(repr=False)
    _options: dict[str, Any] = field(repr=False)
    _parts: list[Part] | None = field(repr=False)

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
        if parts is None:  # an earlier call used the graphs up
            fresh = plan(self.model, **self._options)
            parts, self.report = fresh._parts or [], fresh.report
        self._parts = None
        report = Report(self.report.model, [], list(self._untraced), [])
        inputs = self._options["example_inputs"]
        with torch.inference_mode(False), torch.no_grad(), _without_collection(), _uncached():
            fused = apply_parts(self.model, parts, report, inplace=inplace, verify=verify)
            if inputs is not None and verify and not inplace:
                compare_whole(self.model, fused, as_arguments(inputs), report)
        return fused


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
    if rules is not None and not isinstance(rules, Mapping):
        raise ReparamError(f"rules must map targets to rules, found {type(rules).__name__}")
    if cost != "macs":
        raise ReparamError(f"cost={cost!r} is not known; this version weighs by cost='macs'")
    inputs = None if example_inputs is None else as_arguments(example_inputs)
    with torch.inference_mode(False), torch.no_grad(), _without_collection(), _uncached():
        parts, failures = find_parts(model, Rules(rules), inputs)
    untraced = [untraced_row(failure) for failure in failures]
    report = Report(type(model).__name__, [], list(untraced))
    for part in parts:
        report.fused.extend(fused_row(part, region) for region in part.decision.regions)
        report.refused.extend(refused_rows(part))
    options = {"example_inputs": example_inputs, "rules": rules, "cost": cost}
    return Plan(model, report, untraced, options, parts)


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
    return plan(model, example_inputs, rules=rules, cost=cost).apply(inplace=inplace, verify=verify)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Make many small objects without Python searching all of them for garbage again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _uncached() -> Iterator[None]:
    """Leave no value of a trace in the cache of `torch.nn.utils.parametrize.cached`."""
    enabled, parametrize._cache_enabled = parametrize._cache_enabled, 0
    try:
        yield
    finally:
        parametrize._cache_enabled = enabled


def check_model(model: Any) -> None:
    """Raise unless the model can be planned."""
    if not isinstance(model, nn.Module):
        hint = "; pass its .module()" if hasattr(model, "module") else ""
        raise ReparamError(f"expected a torch.nn.Module, found {type(model).__name__}{hint}")
    for name, module in model.named_modules():
        if any(
            is_lazy(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())
        ):
            raise ReparamError(
                f"{name or 'the model'} ({type(module).__name__}) is lazy and was never run; run "
                "the model once on an input first"
            )
        kind = type(module)
        runs = kind is not nn.Module and not isinstance(module, fx.GraphModule)
        runs = runs and not kind.__module__.startswith(
            ("torch.fx", "torch.export", "torch._export")
        )
        if module.training and runs:
            raise ReparamError(
                f"{name or 'the model'} ({type(module).__name__}) is in training mode, where "
                "batch norm depends on the batch; call model.eval() first"
            )
