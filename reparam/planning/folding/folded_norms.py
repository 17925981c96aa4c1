"""The weight and the bias of a norm go into all that reads it, so that the norm has none.

A norm by statistics of its input is not affine, but what it ends with is; linear layers and
convolutions that read it take that in::

    A(w * n(x) + b) = (A w) * n(x) + A b

No operator is saved by this. It is done where somebody wishes it: a norm by the root mean square
without a weight commutes with rotations (QuaRot, arXiv 2404.00456; SliceGPT, arXiv 2401.15024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from torch import fx

from reparam.algebra import AffineConv, Norm, ending, identity
from reparam.capture import Trait, traits
from reparam.errors import Refusal
from reparam.planning.appraiser import Appraiser
from reparam.planning.dominators import Candidate, Link
from reparam.planning.folding.shared_weights import Folding, keep_unshared
from reparam.planning.regions import FoldedNorm, Host, Region
from reparam.rules import Commuting, Normalized, Unscalable


@dataclass(frozen=True, eq=False)
class _Reader:
    """What reads a norm and takes its weight in.

    Args:
        link: Its link; the base is the norm, or a view of it.
        form: Its form over what the norm has normalised.
    """

    link: Link
    form: AffineConv


def folded_regions(
    nodes: Sequence[fx.Node], appraiser: Appraiser, folding: Folding
) -> tuple[list[Region], dict[fx.Node, Refusal]]:
    """The regions of norms that become bare, and of what reads them; and why other norms stay."""
    folded: dict[fx.Node, list[Region]] = {}
    refused: dict[fx.Node, Refusal] = {}
    for node in nodes:
        regions = _folded(node, appraiser)
        if isinstance(regions, Refusal):
            refused[node] = regions
        elif regions:
            folded[node] = regions
    refused |= keep_unshared(folded, appraiser, folding)
    return [*chain.from_iterable(folded.values())], refused


def _folded(node: fx.Node, appraiser: Appraiser) -> list[Region] | Refusal:
    """The regions of one norm and of what reads it; none if it is no norm with a weight."""
    scaled = _scaled_norm(node, appraiser)
    if scaled is None:
        return []
    if isinstance(scaled, Refusal):
        return scaled
    norm, weights = scaled
    bare = {node}
    readers = _readers(node, weights, bare, appraiser)
    if isinstance(readers, Refusal):
        return readers
    own = _bare(node, norm.stripped(), weights, appraiser)
    if isinstance(own, Refusal):
        return own
    regions = [own]
    for reader in readers:
        region = _taking_in(reader, appraiser)
        if isinstance(region, Refusal):
            return Refusal(f"{reader.link.value} cannot take its weight in: {region.reason}")
        regions.append(region)
    together = frozenset[fx.Node]().union(*(region.inner | region.dying for region in regions))
    values = {region.value for region in regions}
    if any(values & (region.inner | region.dying) - {region.value} for region in regions):
        return Refusal("of what reads it, one operator is a part of another")
    folded = FoldedNorm(
        node,
        own.base,
        weights,
        frozenset(bare),
        tuple(region.path for region in regions),
        tuple(region.main.value for region in regions),
    )
    return [
        replace(region, folded=folded, together=region.together | together) for region in regions
    ]


def _scaled_norm(node: fx.Node, appraiser: Appraiser) -> tuple[Norm, AffineConv] | Refusal | None:
    """The norm that a value is, with its weight and bias; None if it has none."""
    if node in appraiser.dead:
        return None
    region = appraiser.fused.get(node)
    if region is not None:
        taken = region.norm is not None and not region.norm.affine
        return (region.norm, region.form) if region.norm is not None and taken else None
    step = appraiser.steps.get(node)
    if isinstance(step, Unscalable):
        return step.refusal
    if not isinstance(step, Normalized) or not isinstance(step.ending.base, fx.Node):
        return None
    weighted = step.ending.like is not None or step.ending.has_bias
    return (step.norm, step.ending) if weighted else None


def _readers(
    value: fx.Node, weights: AffineConv, bare: set[fx.Node], appraiser: Appraiser
) -> list[_Reader] | Refusal:
    """What reads a norm, directly or across views, which are noted; a refusal if one is not affine.

    Args:
        value: The norm.
        weights: Its weight and bias.
        bare: Takes the views.
        appraiser: The graph as it stands.
    """
    readers: list[_Reader] = []
    pending: list[tuple[fx.Node, tuple[Commuting, ...]]] = [(value, ())]
    while pending:
        node, crossed = pending.pop()
        reading = appraiser.readers_of_value(node)
        for reader in sorted(reading, key=appraiser.facts.order.__getitem__):
            link = appraiser.forest.links.get(reader)
            if reader.op == "output":
                return Refusal("it is returned, or read by code that is not known")
            if link is None or link.base is not node:
                return _no_layer(reader)
            commuting = _crossing(link, appraiser)
            if commuting is not None:
                bare.add(reader)
                pending.append((reader, (*crossed, *commuting)))
                continue
            if link.form is None or link.form.diagonal:
                return _no_layer(reader)
            form = _weighted(weights, crossed, link.form)
            if isinstance(form, Refusal):
                return Refusal(f"{reader} cannot take its weight in: {form.reason}")
            readers.append(_Reader(link, form))
    return readers or Refusal("nothing reads it")


def _no_layer(reader: fx.Node) -> Refusal:
    return Refusal(
        f"it is read by {reader}, which is no linear layer and no convolution that could take its "
        "weight in"
    )


def _crossing(link: Link, appraiser: Appraiser) -> tuple[Commuting, ...] | None:
    """How an operator that stays where it is lets a scale pass; None if none passes it."""
    node, form = link.value, link.form
    if node in appraiser.fused:
        return None
    if form is not None and form.identity:
        return None if Trait.COMPUTES in traits(node) else ()
    passing = appraiser.forest.passing.get(node, link)
    return None if passing.commuting is None else (passing.commuting,)


def _weighted(
    weights: AffineConv, crossed: Sequence[Commuting], form: AffineConv
) -> AffineConv | Refusal:
    """The form of a reader after the weight and the bias of a norm, moved across views."""
    axes = () if form.axes is None else form.axes
    axis = -1 - len(axes)
    for commuting in reversed(crossed):
        if weights.has_bias and not commuting.constants:
            return Refusal("a bias does not pass what lies between")
        before = axis if commuting.copies else commuting.input_axis(axis, form.in_channels)
        if isinstance(before, Refusal):
            return before
        axis = before
    if axis != -1 - len(weights.axes or ()):
        return Refusal("it works along another axis")
    moved = replace(weights, base=form.base, rank=form.rank).with_axes(len(axes))
    return moved.then(form)


def _bare(node: fx.Node, norm: Norm, weights: AffineConv, appraiser: Appraiser) -> Region | Refusal:
    """The region of a norm that becomes bare."""
    region = appraiser.fused.get(node)
    ones = ending(identity(), None, None, norm.channels, -1 - len(weights.axes or ()))
    if isinstance(ones, Refusal):
        return ones
    ones = replace(ones, dtype=weights.dtype, like=weights.like)
    if region is not None:
        form = replace(ones, base=region.base)
        return appraiser.banned.get((node, region.base)) or replace(
            region, form=form, plain=form, norm=norm
        )
    base = weights.base
    if not isinstance(base, fx.Node):
        return Refusal("it reads no value of the graph")
    inner = (*appraiser.forest.through(node, (base,)), node)
    link = Link(node, base, weights, None, inner)
    candidate = Candidate(base, replace(ones, base=base), (link,))
    return _drafted(candidate, node, appraiser, Host(link, norm))


def _taking_in(reader: _Reader, appraiser: Appraiser) -> Region | Refusal:
    """The region of a reader that takes the weight of a norm in."""
    link = reader.link
    candidate = Candidate(link.base, replace(reader.form, base=link.base), (link,))
    return _drafted(candidate, link.value, appraiser, None)


def _drafted(
    candidate: Candidate, value: fx.Node, appraiser: Appraiser, host: Host | None
) -> Region | Refusal:
    """A region that saves nothing, if it costs no more and is safe."""
    gone = appraiser.dying([(value, candidate)], metadata=False)
    region = appraiser.draft(candidate, value, gone, host=host)
    if isinstance(region, Refusal):
        return region
    if region.gain.loses:
        return Refusal("it would cost more")
    if not region.collapses or not gone.issuperset(candidate.inner):
        return Refusal("a part of it is also read elsewhere")
    return appraiser.hazard_of(region) or region
