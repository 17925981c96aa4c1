"""Terms of a sum over one base join, however the sum is associated.

In ``x + conv1(y) + conv2(y)`` neither addition is affine over one value, the convolutions are::

    (x + A(y)) + B(y) = x + (A + B)(y)

The second addition then is the first one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from reparam.algebra import AffineConv, AffineSum
from reparam.errors import Refusal
from reparam.planning.appraiser import Appraiser
from reparam.planning.dominators import Candidate, Link
from reparam.planning.regions import Absorbed, Region


@dataclass(frozen=True)
class Term:
    """A term of a sum, the addition that reads it, perhaps alone, and what else that adds."""

    value: fx.Node
    total: fx.Node
    kept: fx.Node
    form: AffineConv
    alone: bool


def regrouped_regions(nodes: Sequence[fx.Node], appraiser: Appraiser) -> Iterator[Region]:
    """The regions in which terms of a sum join, where that gains."""
    seen: set[fx.Node] = set()
    for node in reversed(nodes):
        if node in seen or not is_sum(node, appraiser):
            continue
        groups: dict[fx.Node, list[Term]] = {}
        for term in terms_of(node, appraiser, seen):
            groups.setdefault(appraiser.forest.root(term.value), []).append(term)
        for group in groups.values():
            yield from _join(group, appraiser)


def is_sum(node: fx.Node, appraiser: Appraiser) -> bool:
    """Whether a node adds two values as they are, and is no operator of a region."""
    step = appraiser.steps.get(node)
    return (
        isinstance(step, AffineSum)
        and len(step.terms) == 2
        and all(term.identity and term.base in node.all_input_nodes for term in step.terms)
        and node not in appraiser.dead
        and node not in appraiser.fused
    )


def terms_of(node: fx.Node, appraiser: Appraiser, seen: set[fx.Node]) -> Iterator[Term]:
    """The terms of a sum of sums, the first ones first."""
    pending = [node]
    terms: list[Term] = []
    while pending:
        total = pending.pop()
        seen.add(total)
        step = appraiser.steps[total]
        if not isinstance(step, AffineSum):
            continue
        bases = [term.base for term in step.terms if isinstance(term.base, fx.Node)]
        operands = [appraiser.current(base) for base in bases]
        for term, operand, other in zip(step.terms, operands, reversed(operands), strict=True):
            alone = appraiser.readers[operand] - appraiser.dead == {total}
            if alone and is_sum(operand, appraiser):
                pending.append(operand)
            else:
                terms.append(Term(operand, total, other, term, alone))
    return reversed(terms)


def _join(group: Sequence[Term], appraiser: Appraiser) -> Iterator[Region]:
    """Let terms over one base join the first that they may."""
    remaining = sorted(group, key=lambda term: not term.alone)
    while remaining:
        first = remaining.pop(0)
        if not first.alone:
            continue
        for other in list(remaining):
            region = _joined(first, other, appraiser)
            if region is not None:
                yield region
                remaining.remove(other)


def _joined(first: Term, other: Term, appraiser: Appraiser) -> Region | None:
    """The region in which one term takes another in, if that saves anything."""
    forest = appraiser.forest
    base = forest.meet(first.value, other.value)
    kept = appraiser.current(other.kept)
    # The first is never the base itself: the addition alone reads it, the other term does not.
    if base is None or other.total in appraiser.dead:
        return None
    ours, between = forest.branch(first.value, base, first.form)
    theirs, besides = forest.branch(other.value, base, other.form)
    if isinstance(ours, Refusal) or isinstance(theirs, Refusal):
        return None
    form = ours.plus(theirs)
    if not isinstance(form, AffineConv):
        return None
    order = appraiser.facts.order
    inner = sorted({*between, *besides, other.total}, key=order.__getitem__)
    link = Link(first.value, base, form, None, tuple(inner))
    candidate = Candidate(base, form, (link,))
    gone = appraiser.dying([(first.value, candidate), (other.total, candidate)], metadata=True)
    absorbed = (Absorbed(other.total, kept, other.value),)
    region = appraiser.draft(candidate, first.value, gone, absorbed=absorbed)
    if isinstance(region, Refusal) or not region.gain.saves:
        return None
    return region if appraiser.hazard_of(region) is None else None
