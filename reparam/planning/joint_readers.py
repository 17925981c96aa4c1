"""Values that die only if all who read them are rewritten.

A batch norm that feeds several convolutions stays as long as one of them reads it, so rewriting one
alone saves nothing. Together they do: each takes the batch norm in, and it dies::

    A(n(x)), B(n(x)) = (A . n)(x), (B . n)(x)

The attention of Next-ViT (arXiv 2207.05501) is built so: a norm before q and, through a pool, k, v.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from torch import fx

from reparam.capture import Trait, traits
from reparam.planning.appraiser import Appraiser
from reparam.planning.cost_functions import NOTHING
from reparam.planning.dominators import Candidate
from reparam.planning.regions import Region


def joint_regions(nodes: Sequence[fx.Node], appraiser: Appraiser) -> Iterator[Region]:
    """The regions of all readers of a value, where they gain together; they come together."""
    sums = sums_by_terms(appraiser)
    for node in reversed(nodes):
        link = appraiser.forest.links.get(node)
        if link is None or link.form is None or link.form.identity or node in appraiser.dead:
            continue
        readers = affine_readers(node, appraiser, sums)
        if len(readers) < 2:
            continue
        bases = (candidate.base for candidate in appraiser.forest.forms(node))
        weighed = (_weigh(readers, base, appraiser) for base in bases)
        yield from next(filter(None, weighed), ())


def sums_by_terms(appraiser: Appraiser) -> dict[fx.Node, fx.Node]:
    """The sums for which values are read that they take in."""
    return {
        inner: link.value
        for link in appraiser.forest.links.values()
        if link.value not in appraiser.dead
        for inner in link.inner
        if inner is not link.value
    }


def affine_readers(
    node: fx.Node, appraiser: Appraiser, sums: Mapping[fx.Node, fx.Node]
) -> list[fx.Node]:
    """The operators that read a value, directly or across others; none if one is not affine."""
    links, facts = appraiser.forest.links, appraiser.facts
    readers: dict[fx.Node, None] = {}
    pending = [node]
    while pending:
        value = pending.pop()
        for reader in sorted(appraiser.readers_of_value(value), key=facts.order.__getitem__):
            link = links.get(sums.get(reader, reader))
            if link is None:
                return []
            if link.base is value and _is_crossed(link.value, appraiser):
                pending.append(link.value)
            else:
                readers[link.value] = None
    inner = {node for reader in readers for node in links[reader].inner if node is not reader}
    return [reader for reader in readers if reader not in inner]


def _is_crossed(node: fx.Node, appraiser: Appraiser) -> bool:
    """Whether forms may pass an operator that stays where it is."""
    link = appraiser.forest.links[node]
    if node in appraiser.fused:
        return False
    if link.form is None or node in appraiser.forest.passing:
        return True
    return link.form.identity and Trait.COMPUTES not in traits(node)


def _weigh(readers: Sequence[fx.Node], base: fx.Node, appraiser: Appraiser) -> list[Region]:
    """One region per reader if together they save operators and none costs more multiply-adds."""
    options: dict[fx.Node, list[Candidate]] = {}
    for reader in readers:
        options[reader] = [form for form in appraiser.forest.forms(reader) if form.base is base]
        if not options[reader]:
            return []
    nearest = [(reader, candidates[0]) for reader, candidates in options.items()]
    metadata = any(candidate.moves_kernels for _, candidate in nearest)
    gone = appraiser.dying(nearest, metadata=metadata)
    owns = [gone & candidate.inner for _, candidate in nearest]
    times = Counter(chain.from_iterable(owns))
    shared = frozenset(node for node in gone if times[node] > 1)
    # What several read is taken in by all of them or crossed by all of them.
    every = chain.from_iterable(options.values())
    crossed = shared.intersection(chain.from_iterable(candidate.crossed for candidate in every))
    choices = []
    for kept in dict.fromkeys((frozenset[fx.Node](), crossed)):
        agreeing = {
            reader: [form for form in forms if form.crossed & shared == kept & form.inner]
            for reader, forms in options.items()
        }
        choices.append(_draft_all(agreeing, owns, shared, appraiser))
    return max(choices, key=lambda regions: sum((region.gain for region in regions), NOTHING))


def _draft_all(
    options: Mapping[fx.Node, Sequence[Candidate]],
    owns: Sequence[set[fx.Node]],
    shared: frozenset[fx.Node],
    appraiser: Appraiser,
) -> list[Region]:
    """The best region of each reader; none if together they save nothing."""
    regions: list[Region] = []
    gain = NOTHING
    for (reader, candidates), own in zip(options.items(), owns, strict=True):
        drafts = [  # what dies for all of them is saved once, by the first
            appraiser.draft(candidate, reader, own, shared, counted=shared if regions else ())
            for candidate in candidates
        ]
        fitting = [
            region
            for region in drafts
            if isinstance(region, Region)
            and region.gain.amount >= 0
            and appraiser.hazard_of(region) is None
        ]
        if not fitting:
            return []
        regions.append(max(fitting, key=lambda region: region.gain))
        gain += regions[-1].gain
    return regions if gain.operators > 0 and gain.saves else []
