"""A scale and a shift of one of several values side by side move into what reads them all.

Values side by side are affine over none of them, but a convolution that alone reads them takes in
what is done to one of them, and so does a batch norm::

    A [x, s * y + c] = (A diag(1, s)) [x, y] + A [0, c]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain

import torch
from torch import fx

from reparam.algebra import AffineConv, AffineStack, identity, weights_dtype
from reparam.analysis import holds_type, promotes
from reparam.capture import reached
from reparam.errors import Refusal
from reparam.planning.appraiser import Appraiser
from reparam.planning.cost_functions import NOTHING
from reparam.planning.dominators import Candidate, Link
from reparam.planning.joint_readers import affine_readers, sums_by_terms
from reparam.planning.regions import Gathered, Region
from reparam.planning.scales.only_readers import alone, behind_identities, is_read_only_by
from reparam.planning.scales.scale_chains import host_in


@dataclass(frozen=True, eq=False)
class _Part:
    """One of several values side by side: what is read of it alone, and its number of channels."""

    value: fx.Node | None
    width: int | None


def gathered_regions(nodes: Sequence[fx.Node], appraiser: Appraiser) -> Iterator[Region]:
    """The regions that take in scales of parts of what they read; those of one come together."""
    for node in reversed(nodes):
        readers = appraiser.readers_of_value(node)
        if any(_stack(reader, appraiser) is not None for reader in readers):
            continue  # it is opened with what it is a part of
        parts = _parts(node, appraiser)
        for scale in dict.fromkeys(filter(None, (_scale(part, appraiser) for part in parts))):
            regions = _taking_in(scale, node, parts, appraiser)
            if not isinstance(regions, Refusal):
                yield from regions


def why_not_gathered(scale: Link, appraiser: Appraiser) -> Refusal | None:
    """Why what reads a scale beside other values does not take it in; None if nothing is beside."""
    node, whole = scale.value, None
    while len(readers := appraiser.readers_of_value(node)) == 1:
        (node,) = readers
        whole = whole if _stack(node, appraiser) is None else node
        link = appraiser.forest.links.get(node)
        if whole is not node and (link is None or link.form is None or not link.form.identity):
            break
    parts = [] if whole is None else _parts(whole, appraiser)
    if whole is None or scale not in [_scale(part, appraiser) for part in parts]:
        return None
    regions = _taking_in(scale, whole, parts, appraiser)
    return regions if isinstance(regions, Refusal) else None


def _parts(whole: fx.Node, appraiser: Appraiser) -> list[_Part]:
    """The values side by side that a value is made of, in order; none if it is no such thing.

    Those among them that are such values are opened. There may be thousands in each other.
    """
    stack = _stack(whole, appraiser)
    parts: list[_Part] = []
    pending = [(whole, term) for term in reversed(stack.terms)] if stack is not None else []
    while pending:
        reader, term = pending.pop()
        value: fx.Node | Refusal | None = None
        base = appraiser.current(term.base) if isinstance(term.base, fx.Node) else None
        if term.identity and base is not None and is_read_only_by({reader}, base, appraiser):
            value = behind_identities(base, {reader}, appraiser)
        own = value if isinstance(value, fx.Node) else None
        inner = None if own is None else _stack(own, appraiser)
        if own is not None and inner is not None and stack is not None and inner.axis == stack.axis:
            pending += [(own, part) for part in reversed(inner.terms)]
        else:
            parts.append(_Part(own, term.out_channels))
    return parts


def _stack(node: fx.Node, appraiser: Appraiser) -> AffineStack | None:
    """What puts values side by side, if it stays what it is."""
    step = appraiser.steps.get(node)
    gone = node in appraiser.dead or node in appraiser.fused or node in appraiser.multiplied
    return step if isinstance(step, AffineStack) and not gone else None


def _scale(part: _Part, appraiser: Appraiser) -> Link | None:
    """The link of a part that is a scale and a shift, which nobody else has a use for."""
    link = None if part.value is None else appraiser.forest.links.get(part.value)
    if link is None or link.form is None or link.form.identity or not link.form.diagonal:
        return None
    taken = any(node in appraiser.fused for node in link.inner)
    return link if not taken and alone(link, appraiser) else None


def _taking_in(
    scale: Link, whole: fx.Node, parts: Sequence[_Part], appraiser: Appraiser
) -> list[Region] | Refusal:
    """One region per reader of values side by side, if all take the scale of one of them in."""
    options: dict[fx.Node, list[Candidate]] = {}
    for reader in affine_readers(whole, appraiser, sums_by_terms(appraiser)):
        options[reader] = appraiser.forest.over(reader, whole)
    nearest = [(reader, ways[0]) for reader, ways in options.items() if ways]
    inner = frozenset[fx.Node]().union(*(way.inner for _, way in nearest))
    gone = appraiser.dying(nearest, metadata=any(way.moves_kernels for _, way in nearest))
    if not nearest or len(nearest) < len(options) or not inner <= gone:
        return Refusal(f"{whole}, of which it is a part, is read by what cannot take it in")
    gathered = _gathered(scale, whole, parts, nearest, appraiser)
    if isinstance(gathered, Refusal):
        return gathered
    if not _stay_floats(scale, parts, weights_dtype(nearest[0][1].form), appraiser):
        return Refusal(f"{whole} may be of another type than the parameters without it")
    regions = _drafts(options, inner, gathered, appraiser)
    if isinstance(regions, Refusal):
        return regions
    cost = sum((appraiser.node_cost(node, 1.0) for node in scale.inner), start=NOTHING)
    regions[0] = replace(regions[0], before=regions[0].before + cost, gain=regions[0].gain + cost)
    together = gathered.between.union(*(region.dying for region in regions))
    dies = frozenset(scale.inner if len(regions) > 1 else ())
    return [
        replace(region, shared=region.shared | dies, together=region.together | together)
        for region in regions
    ]


def _drafts(
    options: Mapping[fx.Node, Sequence[Candidate]],
    inner: frozenset[fx.Node],
    gathered: Gathered,
    appraiser: Appraiser,
) -> list[Region] | Refusal:
    """The best region of each reader; why there is none if one of them has none."""
    times = Counter(chain.from_iterable(ways[0].inner for ways in options.values()))
    shared = frozenset(node for node in inner if times[node] > 1)
    regions: list[Region] = []
    for reader, ways in options.items():  # what dies for all of them is saved once, by the first
        counted = shared if regions else frozenset[fx.Node]()
        drafts = [_drafted(reader, way, gathered, shared, counted, appraiser) for way in ways]
        fitting = [region for region in drafts if isinstance(region, Region)]
        if not fitting:
            return next(reason for reason in drafts if isinstance(reason, Refusal))
        regions.append(max(fitting, key=lambda region: region.gain))
    return regions


def _gathered(
    scale: Link,
    whole: fx.Node,
    parts: Sequence[_Part],
    readers: Sequence[tuple[fx.Node, Candidate]],
    appraiser: Appraiser,
) -> Gathered | Refusal:
    """A scale of a part as what it does to the whole."""
    stack = appraiser.steps[whole]
    totals = {way.form.in_channels for _, way in readers if way.form.columns is None}
    widths = _widths([part.width for part in parts], next(iter(totals - {None}), None))
    if widths is None or not isinstance(stack, AffineStack) or scale.form is None:
        return Refusal(f"the number of channels of a value in {whole} is not known")
    base, total = identity(whole), sum(widths)
    forms: list[AffineConv] = []
    channels: list[range] = []
    for part, width, start in zip(parts, widths, accumulate(widths, initial=0), strict=False):
        own = range(start, start + width)
        form: AffineConv | Refusal = base.select(own, total, stack.axis)
        if part.value is scale.value and isinstance(form, AffineConv):
            form = form.then(scale.form)
            channels.append(own)
        if isinstance(form, Refusal):
            return form
        forms.append(form)
    joined = stack.join(forms)
    if isinstance(joined, Refusal):
        return joined
    return Gathered(scale, joined, tuple(channels), _between(scale, whole, appraiser))


def _stay_floats(
    scale: Link, parts: Sequence[_Part], dtype: torch.dtype | None, appraiser: Appraiser
) -> bool:
    """Whether values side by side surely have the type of the parameters without a scale."""
    facts = appraiser.facts
    if holds_type(scale.base, dtype, facts):
        return True
    others = (part.value for part in parts if part.value is not scale.value)
    return any(holds_type(other, dtype, facts) for other in others if other is not None) and all(
        promotes(node, facts) for node in scale.inner
    )


def _widths(known: Sequence[int | None], total: int | None) -> list[int] | None:
    """The numbers of channels of all parts, of which their total tells one that is not known."""
    if None in known and total is not None and known.count(None) == 1:
        rest = total - sum(width for width in known if width is not None)
        known = [rest if width is None else width for width in known]
    widths = [width for width in known if width is not None and width > 0]
    return widths if len(widths) == len(known) else None


def _between(scale: Link, whole: fx.Node, appraiser: Appraiser) -> frozenset[fx.Node]:
    """The values side by side that a scaled value is a part of, and what else leads to them."""
    last = appraiser.facts.order[whole]

    def users(node: fx.Node) -> list[fx.Node]:
        return [user for user in node.users if appraiser.facts.order[user] <= last]

    below = reached([scale.value], users)
    return frozenset(below & reached([whole], lambda node: node.all_input_nodes)) - {scale.value}


def _drafted(
    reader: fx.Node,
    candidate: Candidate,
    gathered: Gathered,
    shared: frozenset[fx.Node],
    counted: frozenset[fx.Node],
    appraiser: Appraiser,
) -> Region | Refusal:
    """The region of one reader that takes a scale in, if it costs no more than before."""
    scale, facts = gathered.link, appraiser.facts
    form = gathered.form.then(candidate.form)
    if isinstance(form, Refusal):
        return form
    crossed = (
        link.crossed if link.commuting is None else (link.commuting,) for link in candidate.path
    )
    if gathered.form.has_bias and not all(each.constants for each in chain.from_iterable(crossed)):
        return Refusal("a constant does not pass what lies between")
    path = [part for link in candidate.path for part in appraiser.parts(link)]
    host = host_in(path, facts) if form.diagonal else None
    scaled = replace(candidate, form=form)
    region = appraiser.draft(scaled, reader, candidate.inner, shared, counted, host=host)
    if isinstance(region, Refusal):
        return region
    if region.gain.loses or not region.collapses:
        return Refusal(f"{reader} cannot take it in for free")
    region = replace(
        region, dying=region.dying.union(scale.inner), gathered=(*region.gathered, gathered)
    )
    return appraiser.hazard_of(region) or region
