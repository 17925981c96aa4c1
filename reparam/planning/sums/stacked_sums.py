"""Sums of values side by side are the sums of their parts, side by side.

They have to be cut at the same places. Parts over one value become one operator; a part that is the
same value in all makes a multiple of them all, and the others are divided by it::

    [A(x), C(y)] + [B(x), D(y)] = [(A + B)(x), (C + D)(y)]
    [A(x), y] + [B(x), y] = 2 [(A + B) / 2 (x), y]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

from torch import fx

from reparam.algebra import AffineConv, AffineStack, identity
from reparam.errors import Refusal
from reparam.planning.appraiser import Appraiser
from reparam.planning.cost_functions import NOTHING, Cost
from reparam.planning.dominators import Candidate, Link
from reparam.planning.regions import Absorbed, Host, Multiple, Region
from reparam.planning.scales import host_in
from reparam.planning.sums.regrouped_sums import Term, is_sum, terms_of


def stacked_regions(nodes: Sequence[fx.Node], appraiser: Appraiser) -> Iterator[Region]:
    """The regions in which terms of a sum join part by part; those of one sum come together."""
    seen: set[fx.Node] = set()
    for node in reversed(nodes):
        if node in seen or not is_sum(node, appraiser):
            continue
        groups: dict[tuple[int, int], list[Term]] = {}
        for term in terms_of(node, appraiser, seen):
            step = appraiser.steps.get(term.value)
            parts = _parts(term, appraiser)
            if parts is not None and isinstance(step, AffineStack):
                groups.setdefault((step.axis, len(parts)), []).append(term)
        for group in groups.values():
            yield from _joined(group, appraiser)


def _parts(term: Term, appraiser: Appraiser) -> list[fx.Node] | None:
    """The values side by side that a term is, and that only the sum needs; None if it is not so."""
    step = appraiser.steps.get(term.value)
    gone = term.value in appraiser.fused or term.value in appraiser.multiplied
    if not isinstance(step, AffineStack) or gone or not term.alone:
        return None
    bases = [part.base for part in step.terms if part.identity]
    parts = [appraiser.current(base) for base in bases if isinstance(base, fx.Node)]
    return parts if len(parts) == len(step.terms) else None


def _joined(group: Sequence[Term], appraiser: Appraiser) -> list[Region]:
    """The regions of the parts of one term that takes all others in, or else one of them."""
    others = [[other for other in group if other is not kept] for kept in group]
    all_in = zip(group, others, strict=True)
    one_in = ((kept, [other]) for kept, rest in zip(group, others, strict=True) for other in rest)
    for kept, joining in chain(all_in, one_in):
        regions = _taking_in(kept, joining, appraiser) if joining else []
        if regions:
            return regions
    return []


def _taking_in(kept: Term, joining: Sequence[Term], appraiser: Appraiser) -> list[Region]:
    """One region per part of the term that stays, if that gains; none for a part that all have."""
    columns = [*zip(*(_parts(term, appraiser) or () for term in (kept, *joining)), strict=True)]
    different = [column for column in columns if len(set(column)) > 1]
    same = {column[0] for column in columns if len(set(column)) == 1}
    if _is_written(same, [kept, *joining], appraiser):
        return []
    times = 1 if len(different) == len(columns) else 1 + len(joining)
    times_there = Counter(column[0] for column in columns)
    leaving = _leaving(joining, appraiser)
    ways: dict[fx.Node, Candidate] = {}
    for column in different:
        way = _summed(column, times, kept, joining, leaving, appraiser)
        if way is None or times_there[column[0]] > 1:
            return []
        ways[column[0]] = way
    if not ways:
        return []
    totals = [(total, next(iter(ways.values()))) for total, _ in leaving]
    gone = appraiser.dying([*ways.items(), *totals], metadata=True)
    shared = frozenset({term.value for term in joining} | {total for total, _ in leaving})
    if not shared <= gone:
        return []
    regions: list[Region] = []
    for value, *terms in different:
        pairs = zip(leaving, terms, strict=True)
        absorbed = tuple(Absorbed(total, stays, term) for (total, stays), term in pairs)
        way, counted = ways[value], shared if regions else ()
        own, host = gone & way.inner, _host(value, way, appraiser)
        region = appraiser.draft(way, value, own, shared, counted, absorbed, host)
        if isinstance(region, Refusal) or region.gain.loses:
            return []
        multiple = None if times == 1 else Multiple(kept.value, kept.total, times)
        regions.append(replace(region, multiple=multiple))
    return _if_it_gains(regions, kept, appraiser)


def _host(value: fx.Node, way: Candidate, appraiser: Appraiser) -> Host | None:
    """The operator that a sum of scales becomes; None if it is more, or none of them can be it."""
    link = appraiser.forest.links.get(value)
    scale = None if link is None or not way.form.diagonal else host_in([link], appraiser.facts)
    return None if scale is None else replace(scale, link=way.path[0])


def _is_written(parts: Iterable[fx.Node], terms: Sequence[Term], appraiser: Appraiser) -> bool:
    """Whether somebody writes to parts that all terms have after the first one has read them."""
    reads = [appraiser.facts.order[term.value] for term in terms]
    memory = appraiser.facts.memory
    return any(memory.write_between(part, min(reads), max(reads)) for part in parts)


def _if_it_gains(regions: list[Region], kept: Term, appraiser: Appraiser) -> list[Region]:
    """Regions of one sum, which come together, if they gain and are safe."""
    first = regions[0]
    if first.multiple is not None:
        product = Cost(operators=1)
        regions[0] = replace(first, after=first.after + product, gain=first.gain - product)
    together = frozenset({kept.value, kept.total}).union(*(region.dying for region in regions))
    regions = [replace(region, together=region.together | together) for region in regions]
    safe = all(appraiser.hazard_of(region) is None for region in regions)
    return regions if safe and sum((r.gain for r in regions), NOTHING).saves else []


def _leaving(joining: Sequence[Term], appraiser: Appraiser) -> list[tuple[fx.Node, fx.Node]]:
    """For each term that leaves a sum the addition that goes, and its operand that stands for it.

    Where both operands of an addition leave, the second one leaves the sum that reads the addition.
    """
    leaving: dict[fx.Node, fx.Node] = {}
    for term in joining:
        total, stays = term.total, term.kept
        while total in leaving:
            (reader,) = appraiser.readers[total] - appraiser.dead
            (stays,) = {appraiser.current(n) for n in reader.all_input_nodes} - {total}
            total = reader
        leaving[total] = stays
    return [*leaving.items()]


def _summed(
    column: Sequence[fx.Node],
    times: int,
    kept: Term,
    joining: Sequence[Term],
    leaving: Sequence[tuple[fx.Node, fx.Node]],
    appraiser: Appraiser,
) -> Candidate | None:
    """The sum of parts as a form over the value that all come from, divided by the factor."""
    forest, first = appraiser.forest, column[0]
    base: fx.Node | None = first
    for part in column[1:]:
        base = None if base is None else forest.meet(base, part)
    alone = appraiser.readers[first] - appraiser.dead == {kept.value}
    if base is None or base is first or not alone:
        return None
    inner = {*(term.value for term in joining), *(total for total, _ in leaving)}
    whole: AffineConv | None = None
    for part in column:
        form, between = forest.branch(part, base, identity(part))
        inner.update(between)
        if isinstance(form, Refusal):
            return None
        total = form if whole is None else whole.plus(form)
        if not isinstance(total, AffineConv):
            return None
        whole = total
    divided = None if whole is None else whole.scale(1 / times)
    if not isinstance(divided, AffineConv):
        return None
    order = appraiser.facts.order.__getitem__
    link = Link(first, base, divided, None, tuple(sorted(inner, key=order)))
    return Candidate(base, divided, (link,))
