"""Everything the page tells of one region: what dies, its formula, its kernels, cost, exactness."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from reparam.algebra import AffineConv, lower, unsupported
from reparam.analysis import Part
from reparam.errors import Refusal
from reparam.planning import Region
from reparam.report.entries import FusedRow
from reparam.report.html.branches import Formula, composed, formula
from reparam.report.html.kernel_pictures import KernelPicture, draw, picture
from reparam.report.rows import fused_row, operator_kind, place
from reparam.rewriting import signature
from reparam.verification import REGION_BOUND, compared

_MOST_DYING = 60


@dataclass(frozen=True)
class Computed:
    """What was computed of the weights of a region.

    Args:
        error: Relative difference in float64; None if it was not verified.
        exactness: The same in words.
        after: Its kernel; None if it cannot be drawn.
        before: The kernel of each branch; None if it cannot be drawn by itself.
    """

    error: float | None
    exactness: str
    after: KernelPicture | None
    before: tuple[KernelPicture | None, ...]


@dataclass(frozen=True)
class RegionDetails:
    """One region, in full.

    Args:
        number: Its number on the page.
        row: Its row of the report.
        base: Where the value is computed that the new operator reads, and by what.
        dying: Kind and place of the operators that die, as many as are shown.
        left_out: How many more die.
        formula: How its value comes from its base.
        computed: What was computed of its weights.
    """

    number: int
    row: FusedRow
    base: str
    dying: tuple[tuple[str, str], ...]
    left_out: int
    formula: Formula
    computed: Computed


def region_details(
    part: Part, number: int, region: Region, known: dict[Hashable, Computed], *, verify: bool
) -> RegionDetails:
    """Gather all of one region.

    Args:
        part: The part of the model.
        number: The region's number on the page.
        region: The region.
        known: What was computed of regions alike; extended.
        verify: Compare the region in float64 with what will replace it.

    Returns:
        The details.
    """
    written = formula(part, region)
    alike = signature(region, part.facts)
    computed = known.get(alike) if alike is not None else None
    if computed is None:
        computed = _compute(part, region, written, verify=verify)
        if alike is not None:
            known[alike] = computed
    order = part.facts.order
    dying = [
        (operator_kind(part.trace, node), place(part.trace, node))
        for node in sorted(region.dying, key=order.__getitem__)
        if node in part.steps
    ]
    base = place(part.trace, region.base)
    if region.base.op == "placeholder":
        base = f"the input {region.base.name}"
    return RegionDetails(
        number,
        fused_row(part, region),
        base,
        tuple(dying[:_MOST_DYING]),
        max(len(dying) - _MOST_DYING, 0),
        written,
        computed,
    )


def _compute(part: Part, region: Region, written: Formula, *, verify: bool) -> Computed:
    """Draw the kernels of a region, and compare it with what will replace it."""
    forms = [composed(branch) for branch in written.branches]
    form = region.form
    device = None if form.like is None else form.like.device
    if device is not None and device.type == "meta":
        unknown = "not verified: the weights are on the meta device"
        return Computed(None, unknown, None, (None,) * len(forms))
    kernel, bias = form.weights.evaluate(device)
    after = picture(kernel, depthwise=form.depthwise)
    if len(forms) == 1 and not written.left_out and _of_one_shape(forms[0], form):
        before = [after]  # a single branch is the whole sum
    else:
        before = [draw(one) if isinstance(one, AffineConv) else None for one in forms]
    if not verify or unsupported(form) is not None:
        return Computed(None, "not verified", after, (*before,))
    error = compared(region, lower(form, kernel, bias, region.norm), part)
    if isinstance(error, Refusal):
        return Computed(None, f"it will be left alone: {error.reason}", after, (*before,))
    said = "verified in float64 on a random input"
    if not error <= REGION_BOUND:
        said = "it differs: it will be left alone; please report it"
    return Computed(error, said, after, (*before,))


def _of_one_shape(branch: AffineConv | Refusal | None, form: AffineConv) -> bool:
    """Whether a branch has a kernel of the shape that the whole form has."""
    if not isinstance(branch, AffineConv):
        return False
    shapes = [
        (one.in_channels, one.out_channels, one.groups, [axis.kernel for axis in one.axes or ()])
        for one in (branch, form)
    ]
    return shapes[0] == shapes[1]
