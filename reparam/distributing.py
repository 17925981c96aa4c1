"""A scale and a shift move into the operands of a sum, or of values side by side.

A sum of two values is affine over neither, but a batch norm after it can be taken in by what makes
them; one of them takes the constant::

    s * (A(x) + B(y)) + c = (s * A(x) + c) + s * B(y)

    s * [A(x), B(y)] + c = [s1 * A(x) + c1, s2 * B(y) + c2]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

from torch import fx

from reparam.affine import AffineConv, AffineStack, AffineSum
from reparam.appraising import Appraiser, moves_kernels
from reparam.costs import Cost
from reparam.errors import Refusal
from reparam.forest import Candidate, Link
from reparam.forms import Columns
from reparam.hazards import hazard
from reparam.regions import Region, Share
from reparam.selection import taken, without_constant


def adopt_distributed_scales(nodes: Sequence[fx.Node], appraiser: Appraiser) -> bool:
    """Move scales into the operands before them where that gains; say whether there was anything.

    Args:
        nodes: The nodes of the graph, in order.
        appraiser: What has been decided so far.
    """
    found = False
    for node in reversed(nodes):
        link = appraiser.forest.links.get(node)
        if link is None or node in appraiser.dead or not _is_scale(link, appraiser):
            continue
        regions = _distributed(link, appraiser)
        for region in regions:
            appraiser.adopt(region)
            found = True
    return found


def _is_scale(link: Link, appraiser: Appraiser) -> bool:
    """Whether a link only scales and shifts a sum, or values side by side, that it alone reads."""
    form, whole = link.form, appraiser.current(link.base)
    return (
        form is not None
        and form.diagonal
        and not form.identity
        and form.columns is None
        and link.value not in appraiser.fused
        and whole not in appraiser.dead
        and whole not in appraiser.fused
        and whole not in appraiser.facts.written
        and isinstance(appraiser.steps.get(whole), AffineSum | AffineStack)
        and appraiser.readers_of_value(whole) == {link.value}
    )


def _distributed(link: Link, appraiser: Appraiser) -> list[Region]:
    """One region per operand, if all take their share in and nothing is lost by that."""
    whole = appraiser.current(link.base)
    operands = _operands(whole, appraiser)
    if link.form is None:
        return []
    options = [_candidates(operand, appraiser) for operand in operands]
    if not operands or not all(options):
        return []
    if isinstance(appraiser.steps[whole], AffineSum):
        shares = [Share(link, shifts=operand is operands[0]) for operand in operands]
    else:
        widths = [several[0].form.out_channels or 0 for several in options]
        if link.form.out_channels not in (None, sum(widths)):
            return []
        ends = accumulate(widths, initial=0)
        shares = [Share(link, range(start, end), sum(widths)) for start, end in pairwise(ends)]
    regions: list[Region] = []
    for operand, candidates, share in zip(operands, options, shares, strict=True):
        drafts = (_drafted(operand, candidate, share, appraiser) for candidate in candidates)
        fitting = [region for region in drafts if region is not None]
        if not fitting:
            return []
        regions.append(max(fitting, key=lambda region: region.gain))
    scale = Cost(operators=1)
    regions[0] = replace(regions[0], before=regions[0].before + scale, gain=regions[0].gain + scale)
    together = frozenset[fx.Node]().union(*(region.dying for region in regions))
    return [replace(region, together=together) for region in regions]


def _operands(whole: fx.Node, appraiser: Appraiser) -> list[fx.Node]:
    """The operands of a sum, sums among them opened, or of values side by side.

    Nothing if one is read elsewhere.
    """
    found: list[fx.Node] = []
    pending = [whole]
    while pending:
        node = pending.pop()
        step = appraiser.steps.get(node)
        opened = isinstance(step, AffineSum) and node not in appraiser.fused
        if not isinstance(step, AffineSum | AffineStack) or not (opened or node is whole):
            found.append(node)
            continue
        terms = step.terms
        bases = [term.base for term in terms if isinstance(term.base, fx.Node)]
        operands = [appraiser.current(base) for base in bases]
        read = map(appraiser.readers_of_value, operands)
        if not all(term.identity for term in terms) or any(one != {node} for one in read):
            return []
        pending.extend(reversed(operands))
    return found if len(set(found)) == len(found) else []


def _candidates(operand: fx.Node, appraiser: Appraiser) -> list[Candidate]:
    """The forms of an operand that can take a scale in."""
    return [
        candidate
        for candidate in appraiser.forest.candidates(operand)
        if isinstance(candidate, Candidate)
        and not candidate.form.diagonal
        and candidate.form.out_channels is not None
    ]


def _drafted(
    operand: fx.Node, candidate: Candidate, share: Share, appraiser: Appraiser
) -> Region | None:
    """The region of one operand with its share of the scale, if it costs no more than before."""
    scale = share.link.form
    if scale is None:
        return None
    part: AffineConv | Refusal = scale if share.shifts else without_constant(scale)
    if share.channels is not None and share.total is not None:
        part = taken(scale, Columns(tuple(share.channels), share.total))
    if isinstance(part, Refusal):
        return None
    form = candidate.form.then(replace(part, columns=None))
    if isinstance(form, Refusal):
        return None
    scaled = replace(candidate, form=form)
    gone = appraiser.dying([(operand, scaled)], metadata=moves_kernels(scaled))
    region = appraiser.draft(scaled, operand, gone)
    if isinstance(region, Refusal) or region.gain.multiply_adds < 0 or region.gain.operators < 0:
        return None
    dies = frozenset([share.link.value])
    region = replace(
        region,
        dying=region.dying | dies,
        shared=region.shared | dies,
        adjustments=(*region.adjustments, share),
    )
    return None if hazard(region, appraiser.facts, appraiser.stand_ins) is not None else region
