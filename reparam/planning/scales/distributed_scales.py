"""A scale and a shift move into the operands of a sum, or of values side by side.

A sum of two values is affine over neither, but a batch norm after it can be taken in by what makes
them; one of them takes the constant, one that the sum does not multiply::

    s * (A(x) + t * B(y)) + c = (s * A(x) + c) + t * (s * B(y))

    s * [A(x), B(y)] + c = [s1 * A(x) + c1, s2 * B(y) + c2]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from torch import fx

from reparam.algebra import AffineConv, AffineStack, AffineSum, Columns, taken, without_constant
from reparam.errors import Refusal
from reparam.planning.appraiser import Appraiser
from reparam.planning.cost_functions import NOTHING
from reparam.planning.dominators import Candidate, Link
from reparam.planning.regions import Region, Share
from reparam.planning.scales.only_readers import alone, behind_identities


@dataclass(frozen=True, eq=False)
class _Operand:
    """One of the values that a scale moves into.

    Args:
        value: The value.
        candidates: Its forms that can take a scale in.
        start: Its first channel among those of the whole.
        width: How many channels it has.
        shifts: Whether it takes the constant in, too.
        within: The sums, and values side by side, that it is an operand of.
    """

    value: fx.Node
    candidates: Sequence[Candidate]
    start: int
    width: int
    shifts: bool = True
    within: tuple[fx.Node, ...] = ()


def distributed_regions(nodes: Sequence[fx.Node], appraiser: Appraiser) -> Iterator[Region]:
    """The regions that scales move into, where that gains; those of one scale come together."""
    for node in reversed(nodes):
        link = appraiser.forest.links.get(node)
        if link is None or node in appraiser.dead:
            continue
        regions = _distributed(link, appraiser)
        if not isinstance(regions, Refusal):
            yield from regions


def why_not_distributed(link: Link, appraiser: Appraiser) -> Refusal | None:
    """Why what is before a scale cannot take it in; None if that is no sum and nothing alike."""
    regions = _distributed(link, appraiser)
    return regions if isinstance(regions, Refusal) else None


def _distributed(link: Link, appraiser: Appraiser) -> list[Region] | Refusal:
    """One region per operand, if all take their share in and nothing is lost by that."""
    scale, whole = link.form, _scaled(link, appraiser)
    if scale is None or whole is None:
        return []
    operands = whole if isinstance(whole, Refusal) else _operands(scale, whole, appraiser)
    if isinstance(operands, Refusal):
        return operands
    regions: list[Region] = []
    for operand in operands:
        region = _best(operand, link, scale, _width(operands), appraiser)
        if region is None:
            return Refusal(f"{operand.value}, of which {whole} is made, cannot take it in for free")
        regions.append(region)
    # The scale itself is saved once, whoever takes it in.
    cost = sum((appraiser.node_cost(node, 1.0) for node in link.inner), start=NOTHING)
    regions[0] = replace(regions[0], before=regions[0].before + cost, gain=regions[0].gain + cost)
    together = frozenset[fx.Node]().union(*(region.dying for region in regions))
    return [replace(region, together=together) for region in regions]


def _scaled(link: Link, appraiser: Appraiser) -> fx.Node | Refusal | None:
    """The sum, or values side by side, that a scale is applied to; None if that is no such thing.

    A refusal if others read it unscaled.
    """
    scale = link.form
    if scale is None or scale.identity or not scale.diagonal or scale.columns is not None:
        return None
    if link.value in appraiser.fused or not alone(link, appraiser):
        return None
    whole = behind_identities(link.base, set(link.inner), appraiser)
    if isinstance(whole, Refusal):
        return whole if _joint(link.base, appraiser) else None
    return whole if _joint(whole, appraiser) else None


def _operands(scale: AffineConv, whole: fx.Node, appraiser: Appraiser) -> list[_Operand] | Refusal:
    """What a scale moves into, if its constant has somewhere to go."""
    operands = _opened(whole, appraiser)
    if isinstance(operands, Refusal):
        return operands
    width = _width(operands)
    shifted = sum(operand.width for operand in operands if operand.shifts)
    if scale.out_channels not in (None, width) or (scale.has_bias and shifted != width):
        return Refusal(f"{whole} has no term that could take its constant in as it is")
    if len({operand.value for operand in operands}) < len(operands):
        return Refusal(f"{whole} takes the same value twice")
    return operands


def _joint(node: fx.Node, appraiser: Appraiser) -> AffineSum | AffineStack | None:
    """What makes a value that is a sum, or values side by side, and not one operator already."""
    step = appraiser.steps.get(node)
    gone = node in appraiser.dead or node in appraiser.fused or node in appraiser.multiplied
    return step if isinstance(step, AffineSum | AffineStack) and not gone else None


def _opened(node: fx.Node, appraiser: Appraiser) -> list[_Operand] | Refusal:
    """The operands of a sum, or of values side by side, those among them opened, too.

    A refusal if one of them can take no scale in.
    """
    step = _joint(node, appraiser)
    if step is None:
        candidates = [
            candidate
            for candidate in appraiser.forest.forms(node)
            if not candidate.form.diagonal and candidate.form.out_channels is not None
        ]
        width = candidates[0].form.out_channels if candidates else None
        if width is None:
            return Refusal(f"{node} is no convolution and no linear layer, which could take it in")
        return [_Operand(node, candidates, 0, width)]
    terms: list[list[_Operand]] = []
    for term in step.terms:
        operands = _opened_term(node, term, appraiser)
        if isinstance(operands, Refusal):
            return operands
        terms.append(operands)
    if isinstance(step, AffineStack):
        return _side_by_side(node, step, terms)
    return _added(node, terms)


def _opened_term(node: fx.Node, term: AffineConv, appraiser: Appraiser) -> list[_Operand] | Refusal:
    """The operands inside of one term of a sum, or of values side by side."""
    if not isinstance(term.base, fx.Node) or not term.diagonal or term.has_bias:
        return Refusal(f"{node} does more than add up its operands")
    value = behind_identities(term.base, {node}, appraiser)
    operands = value if isinstance(value, Refusal) else _opened(value, appraiser)
    if isinstance(operands, Refusal):
        return operands
    # A constant that is multiplied afterwards would be another one.
    return [
        replace(operand, within=(node, *operand.within), shifts=operand.shifts and term.identity)
        for operand in operands
    ]


def _side_by_side(
    node: fx.Node, stack: AffineStack, terms: Sequence[Sequence[_Operand]]
) -> list[_Operand] | Refusal:
    """Operands side by side: each takes in what is for its own channels."""
    forms = (form.form for term in terms for operand in term for form in operand.candidates)
    if any(len(form.axes or ()) != -1 - stack.axis for form in forms):
        return Refusal(f"{node} puts values side by side along another axis")
    starts = accumulate(map(_width, terms), initial=0)
    return [
        replace(operand, start=start + operand.start)
        for start, term in zip(starts, terms, strict=False)
        for operand in term
    ]


def _added(node: fx.Node, terms: Sequence[Sequence[_Operand]]) -> list[_Operand] | Refusal:
    """Operands that are added: each takes in the factor, the first that can the constant."""
    if len(set(map(_width, terms))) > 1:
        return Refusal(f"{node} adds values of different numbers of channels")
    able = (index for index, term in enumerate(terms) if any(operand.shifts for operand in term))
    first = next(able, 0)
    return [
        operand if index == first else replace(operand, shifts=False)
        for index, term in enumerate(terms)
        for operand in term
    ]


def _width(operands: Sequence[_Operand]) -> int:
    """How many channels operands have side by side."""
    return max((operand.start + operand.width for operand in operands), default=0)


def _best(
    operand: _Operand, link: Link, scale: AffineConv, total: int, appraiser: Appraiser
) -> Region | None:
    """The region of an operand with its share of a scale that gains most, if one loses nothing."""
    share = Share(link, operand.within, shifts=operand.shifts)
    part: AffineConv | Refusal = scale
    if operand.width < total:
        channels = range(operand.start, operand.start + operand.width)
        share = replace(share, channels=channels, total=total)
        part = taken(scale, Columns(tuple(channels), total))
    if isinstance(part, Refusal):
        return None
    part = replace(part if operand.shifts else without_constant(part), columns=None)
    drafts = (_drafted(operand.value, form, part, share, appraiser) for form in operand.candidates)
    fitting = (region for region in drafts if region is not None)
    return max(fitting, key=lambda region: region.gain, default=None)


def _drafted(
    operand: fx.Node, candidate: Candidate, part: AffineConv, share: Share, appraiser: Appraiser
) -> Region | None:
    """The region of one operand with its share of the scale, if it costs no more than before."""
    form = candidate.form.then(part)
    if isinstance(form, Refusal):
        return None
    scaled = replace(candidate, form=form)
    gone = appraiser.dying([(operand, scaled)], metadata=scaled.moves_kernels)
    region = appraiser.draft(scaled, operand, gone)
    if isinstance(region, Refusal) or region.gain.loses:
        return None
    dies = frozenset(share.link.inner)
    region = replace(
        region,
        dying=region.dying | dies,
        shared=region.shared | dies,
        adjustments=(*region.adjustments, share),
    )
    return region if appraiser.hazard_of(region) is None else None
