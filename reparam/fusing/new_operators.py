"""The new operators of a part: made of their forms, and compared with what they replace."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import nn

from reparam.algebra import kernel_shape, loses_digits, lower, take_after
from reparam.analysis import Part
from reparam.errors import Refusal, warn
from reparam.modules import threads_for
from reparam.planning import PlannedPart, Region
from reparam.report import Report, place, taught_rules
from reparam.rewriting import signature
from reparam.verification import NOT_FINITE, REGION_BOUND, compared, is_finite

Made = tuple[nn.Module, float | None]


def make_all(
    planned: PlannedPart, made: dict[Hashable, Made], verify: bool, report: Report
) -> PlannedPart:
    """Make the operators of all regions; plan the part without those that cannot be made.

    Those made so far are extended, by key and by signature of their regions.
    """
    while True:
        banned: dict[Region, Refusal] = {}
        for region in planned.decision.regions:
            if region.key in made:
                continue
            alike = signature(region, planned.part.facts)
            operator = made.get(alike) or _make(region, planned.part, verify, report)
            if isinstance(operator, Refusal):
                banned[region] = operator
                continue
            made[region.key] = operator
            if alike is not None:
                made[alike] = operator
        if not banned:
            return planned
        planned = planned.without(banned)


def _make(region: Region, part: Part, verify: bool, report: Report) -> Made | Refusal:
    """Compute the weights of a region's operator, verify them, round them."""
    form, where = region.form, place(part.trace, region.value)
    device = None if form.like is None else form.like.device
    if device is not None and device.type == "meta":
        shape = kernel_shape(form.in_channels, form.out_channels, form.groups, form.axes)
        kernel = torch.empty(shape, dtype=torch.float64, device="meta")
        bias = kernel.new_empty(shape[0]) if form.has_bias else None
        module = lower(form, kernel, bias, region.norm)
        take_after(module, form)
        add_note(
            report, "weights on the meta device: only the structure is fused, nothing verified"
        )
        return module, None
    with torch.no_grad(), threads_for(form.multiply_adds):
        module = lower(form, *form.weights.evaluate(device), region.norm)
        error: float | None = None
        if verify:
            checked = compared(region, module, part)
            if isinstance(checked, Refusal):
                return checked
            error = checked
            if not error <= REGION_BOUND:
                taught = taught_rules(part, region)
                blame = (
                    f"It rests on {taught}: check that with reparam.testing.rulecheck, and if it "
                    "holds, please report this"
                    if taught
                    else "A rule of reparam is wrong: please report it"
                )
                warn(
                    f"{where}: the fused operator differs by {error:.1e} and was left alone. "
                    f"{blame}"
                )
                reason = f"verification failed: a relative difference of {error:.1e}"
                return Refusal(f"{reason}; it rests on {taught}" if taught else reason)
        exact = {name: parameter.detach() for name, parameter in module.named_parameters()}
        take_after(module, form)
        if not is_finite(module):
            if error is None and not is_finite(
                lower(form, *form.weights.evaluate(device), region.norm)
            ):
                return NOT_FINITE
            warn(f"{where}: the fused weights overflow {form.dtype}; it was left alone")
            return Refusal(f"the fused weights overflow {form.dtype}")
        if loses_digits(module, dict(module.named_parameters()), exact):
            return Refusal(f"the fused weights are so small that {form.dtype} loses their digits")
    return module, error


def add_note(report: Report, text: str) -> None:
    """Add a note to a report that does not have it yet."""
    if text not in report.notes:
        report.notes.append(text)
