"""Values that die only if all who read them are rewritten.

A batch norm that feeds several convolutions stays as long as one of them reads it, so rewriting one
alone saves nothing. Together they do: each takes the batch norm in, and it dies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from torch import fx

from reparam.capture.operators import computes
from reparam.planning.appraiser import Appraiser
from reparam.planning.costs import NOTHING
from reparam.planning.dominators import Candidate
from reparam.planning.regions import Region


def adopt_joint_regions(nodes: Sequence[fx.Node], appraiser: Appraiser) -> bool:
    """Rewrite all readers of a value where that gains; say whether there was anything.

    Args:
        nodes: The nodes of the graph, in order.
        appraiser: What has been decided so far.
    """
    sums = {
        inner: link.value
        for link in appraiser.forest.links.values()
        if link.value not in appraiser.dead
        for inner in link.inner
        if inner is not link.value
    }
    found = False
    for node in reversed(nodes):
        link = appraiser.forest.links.get(node)
        if link is None or link.form is None or link.form.identity or node in appraiser.dead:
            continue
        readers = _affine_readers(node, appraiser, sums)
        if len(readers) < 2:
            continue
        for base in _bases(node, appraiser):
            regions = _weigh(readers, base, appraiser)
            if regions:
                for region in regions:
                    appraiser.adopt(region)
                found = True
                break
    return found


def _affine_readers(
    node: fx.Node, appraiser: Appraiser, sums: Mapping[fx.Node, fx.Node]
) -> list[fx.Node]:
    """The operators that read a value, directly or across others; none if one is not affine."""
    links, facts = appraiser.forest.links, appraiser.facts
    found: dict[fx.Node, None] = {}
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
                found[link.value] = None
    inner = {part for reader in found for part in links[reader].inner if part is not reader}
    return [reader for reader in found if reader not in inner]


def _is_crossed(node: fx.Node, appraiser: Appraiser) -> bool:
    """Whether forms may pass an operator that stays where it is."""
    link = appraiser.forest.links[node]
    if node in appraiser.fused:
        return False
    if link.form is None or node in appraiser.forest.passing:
        return True
    return link.form.identity and not computes(node)


def _bases(node: fx.Node, appraiser: Appraiser) -> Iterator[fx.Node]:
    """The bases of a value, the nearest first."""
    for candidate in appraiser.forest.candidates(node):
        if isinstance(candidate, Candidate):
            yield candidate.base


def _weigh(readers: Sequence[fx.Node], base: fx.Node, appraiser: Appraiser) -> list[Region]:
    """One region per reader if together they save operators and none costs more multiply-adds."""
    options: dict[fx.Node, list[Candidate]] = {}
    for reader in readers:
        options[reader] = [
            candidate
            for candidate in appraiser.forest.candidates(reader)
            if isinstance(candidate, Candidate) and candidate.base is base
        ]
        if not options[reader]:
            return []
    first = [(reader, options[reader][0]) for reader in readers]
    gone = appraiser.dying(first, metadata=any(candidate.moves_kernels for _, candidate in first))
    owns = [
        gone & {reader, *(node for link in candidate.path for node in link.inner)}
        for reader, candidate in first
    ]
    times = Counter(node for own in owns for node in own)
    shared = frozenset(node for node in gone if times[node] > 1)
    # What several read is taken in by all of them or crossed by all of them.
    either = (one for several in options.values() for one in several)
    crossed = shared.intersection(node for one in either for node in _crossed(one))
    choices = []
    for kept in dict.fromkeys((frozenset[fx.Node](), crossed)):
        fitting = {
            reader: [one for one in options[reader] if _crossed(one) & shared == kept & _on(one)]
            for reader in readers
        }
        choices.append(_draft_all(fitting, owns, shared, appraiser))
    return max(choices, key=lambda regions: sum((one.gain for one in regions), NOTHING))


def _on(candidate: Candidate) -> set[fx.Node]:
    """The nodes that a candidate takes in or crosses."""
    return {node for link in candidate.path for node in link.inner}


def _crossed(candidate: Candidate) -> frozenset[fx.Node]:
    """The operators that a candidate leaves where they are."""
    return frozenset(link.value for link in candidate.path if link.form is None)


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
        drafts = [
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
