"""Decide which values become which convolutions.

Walking back from the outputs, a value is replaced by the convolution of its form over one of its
bases where that costs less than the nodes that die. Whether more is gained further up is known
beforehand, from dynamic programming along the affine dominators::

    best(v) = the larger of best(above v) and, over the bases b of v, gain(v, b) + best(b)

What was decided becomes one link, and the walk is repeated until it finds nothing more. Then values
with several readers are weighed, all their readers together, and the walk begins again; then sums
of several values, or of values side by side, and what scales them; then scales of some of the
values side by side, and chains of scales. At last comes what nobody reads, but code computes; and,
if somebody wishes it, norms hand their weights to what reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

from torch import fx

from reparam.analysis import Facts
from reparam.capture import Trait, traits
from reparam.errors import Refusal
from reparam.planning.appraiser import Appraiser
from reparam.planning.cost_functions import MACS, NOTHING, Cost, Measure
from reparam.planning.dominators import LONGEST, Candidate, Link
from reparam.planning.folding import Folding, folded_regions
from reparam.planning.joint_readers import joint_regions
from reparam.planning.regions import Region
from reparam.planning.scales import (
    chained_regions,
    distributed_regions,
    gathered_regions,
    why_not_distributed,
    why_not_gathered,
)
from reparam.planning.sums import linear_regions, regrouped_regions, stacked_regions, why_not_linear
from reparam.rules import Step


@dataclass
class Decision:
    """The values that become one operator, in the order of the graph, and why others stay."""

    regions: list[Region] = field(default_factory=list)
    refused: dict[fx.Node, Refusal] = field(default_factory=dict)


def decide(
    graph: fx.Graph,
    steps: Mapping[fx.Node, Step],
    facts: Facts,
    banned: Mapping[tuple[fx.Node, fx.Node], Refusal],
    measure: Measure = MACS,
    folding: Folding | None = None,
) -> Decision:
    """Plan one graph, without the regions, by value and base, that are banned.

    The weights of norms go into what reads them if that is wished for.
    """
    appraiser = Appraiser(graph, steps, facts, banned, measure)
    nodes = list(graph.nodes)
    while True:
        walk = _Walk(nodes, appraiser)
        passes = (
            walk.regions(),
            joint_regions(nodes, appraiser),
            regrouped_regions(nodes, appraiser),
            stacked_regions(nodes, appraiser),
            linear_regions(nodes, appraiser),
            distributed_regions(nodes, appraiser),
            gathered_regions(nodes, appraiser),
            chained_regions(nodes, appraiser),
        )
        if not any(map(appraiser.adopt_all, passes)) and not appraiser.revive():
            break
    refused = {**appraiser.forest.refused, **walk.refused, **why_not_linear(nodes, appraiser)}
    if folding is not None:
        regions, reasons = folded_regions(nodes, appraiser, folding)
        appraiser.adopt_all(regions)
        refused |= reasons
    return Decision(
        sorted(appraiser.fused.values(), key=lambda region: facts.order[region.value]),
        {
            node: refused[node]
            for node in nodes
            if node in refused and node not in appraiser.dead and node not in appraiser.fused
        },
    )


class _Walk:
    """One walk over the graph."""

    def __init__(self, nodes: list[fx.Node], appraiser: Appraiser) -> None:
        self.nodes = nodes
        self.appraiser = appraiser
        self.forest = appraiser.forest
        self.candidates: dict[fx.Node, list[Candidate]] = {}
        self.stops: dict[fx.Node, Refusal] = {}
        self.best: dict[fx.Node, Cost] = {}
        self.area: dict[fx.Node, float] = {}
        self.refused: dict[fx.Node, Refusal] = {}
        self.partial = self._partial_sums()
        self.readers: dict[fx.Node, list[fx.Node]] = {}
        for value, link in self.forest.links.items():
            self.readers.setdefault(link.base, []).append(value)

    def regions(self) -> Iterator[Region]:
        """The regions that gain by themselves."""
        for node in self.nodes:
            self._weigh(node)
        for node in reversed(self.nodes):
            region = self._chosen(node)
            while region is not None:
                yield region
                region = self._continued(region)

    def _continued(self, region: Region) -> Region | None:
        """The region that also takes in scales behind another one, from which that was too far.

        It takes in as many as it has operators, so that it doubles: a chain of a thousand scales is
        planned in ten steps.
        """
        scales = self._scales_after(region.value, LONGEST + len(region.path))
        while scales:
            value = scales[-1]
            for candidate in self.forest.over(value, region.base, len(scales) + 1):
                longer = self.appraiser.region(candidate, value)
                if isinstance(longer, Region):
                    return longer
            scales = scales[: len(scales) // 2]
        return None

    def _scales_after(self, value: fx.Node, most: int) -> list[fx.Node]:
        """The scales in a row behind a value, each of which nothing else affine reads."""
        scales: list[fx.Node] = []
        while len(scales) < most:
            readers = self.readers.get(value, ())
            value = readers[0] if len(readers) == 1 else value
            link = self.forest.links.get(value)
            if len(readers) != 1 or link is None or link.form is None or not link.form.diagonal:
                break
            scales.append(value)
        return scales

    def _chosen(self, node: fx.Node) -> Region | None:
        """The region of a node that gains most; None, with a reason that is noted, if none does."""
        link = self.forest.links.get(node)
        if link is None or link.form is None or node in self.appraiser.dead:
            return None
        region, reason = self._choose(node, link)
        if region is None and reason is not None:
            self.refused[node] = reason
        return region

    def _weigh(self, node: fx.Node) -> None:
        """List the candidates of a node, and what is gained from it upwards."""
        link = self.forest.links.get(node)
        if link is None or node in self.appraiser.dead:
            self.area[node] = 1.0
            return
        # Positions per one of the input, so that gains before and after a stride compare.
        strides = prod(axis.stride for axis in (link.form.axes or ())) if link.form else 1
        above = self.area.get(link.base, 1.0)
        transposed = link.form is not None and link.form.transposed
        self.area[node] = above * strides if transposed else above / strides
        candidates: list[Candidate] = []
        idle = link.form is not None and link.form.identity
        free = idle and Trait.COMPUTES not in traits(node)
        if link.form is not None and not free and node not in self.partial:
            for candidate in self.forest.candidates(node):
                if isinstance(candidate, Refusal):
                    self.stops[node] = candidate
                    break
                candidates.append(candidate)
        self.candidates[node] = candidates
        self.best[node] = self._keep(node, link)
        for candidate in candidates:
            region = self.appraiser.region(candidate, node)
            if isinstance(region, Region):
                self.best[node] = max(self.best[node], self._worth(region))

    def _partial_sums(self) -> set[fx.Node]:
        """Sums that a larger sum, which gains, takes in: not worth a look of their own.

        So a sum of a thousand branches is planned in linear time.
        """
        links, appraiser = self.forest.links, self.appraiser
        gaining: set[fx.Node] = set()
        partial: set[fx.Node] = set()
        for node in reversed(self.nodes):
            link = links.get(node)
            gone = node in partial or node in appraiser.dead
            if link is None or len(link.inner) == 1 or gone:
                continue
            readers = appraiser.readers[node] - appraiser.dead
            if len(readers) == 1 and readers <= gaining:
                partial.add(node)
                gaining.add(node)
            elif link.form is not None:
                forms = self.forest.forms(node)
                candidate = next((form for form in forms if not form.form.diagonal), None)
                if candidate is None:
                    continue
                region = appraiser.region(candidate, node)
                if isinstance(region, Region):
                    gaining.add(node)
                    sums = {n for n in region.dying if n in links and len(links[n].inner) > 1}
                    partial |= sums - {node}
                    gaining |= sums
        return partial

    def _keep(self, node: fx.Node, link: Link) -> Cost:
        """What can be gained above a value that stays as it is."""
        above = [self.best.get(link.base, NOTHING)]
        if len(link.inner) > 1:
            above.extend(self.best.get(operand, NOTHING) for operand in node.all_input_nodes)
        return max(above)

    def _worth(self, region: Region) -> Cost:
        """What a region gains, with what can still be gained above it."""
        unit = region.base if region.form.transposed else region.value
        sized = region.value in self.appraiser.facts.shapes
        relative = self.appraiser.weigher.measure is MACS and not sized
        scale = self.area[unit] if relative else 1.0
        survivor = region.base
        for link in region.path:
            if link.value not in region.dying:
                survivor = link.value
        return region.gain.times(scale) + self.best.get(survivor, NOTHING)

    def _choose(self, node: fx.Node, link: Link) -> tuple[Region | None, Refusal | None]:
        """The region of a value that is worth most, or why there is none; ties to the nearest."""
        worth = self._keep(node, link)
        chosen: Region | None = None
        reason: Refusal | None = None
        across: Refusal | None = None
        for candidate in self.candidates.get(node, ()):
            region = self.appraiser.region(candidate, node)
            if isinstance(region, Refusal):
                several = candidate.joins > 1
                joins = several or len(link.inner) > 1
                if joins and not (candidate.joins == 1 and candidate.form.columns):
                    reason = reason or region
                if several:
                    across = across or region
                continue
            value = self._worth(region)
            if value > worth or (chosen is None and value >= worth):
                chosen, worth = region, value
        if chosen is not None or (link.form is not None and link.form.identity):
            return chosen, None
        return None, reason or self._why_not(node, link, across)

    def _why_not(self, node: fx.Node, link: Link, across: Refusal | None) -> Refusal | None:
        """Why a value stays of which no candidate says it; None if nobody expects otherwise."""
        above = self.forest.links.get(link.base)
        while above is not None and above.form is None:  # what forms cross
            above = self.forest.links.get(above.base)
        follows_affine = above is not None and above.form is not None
        form = link.form
        alone = len(link.inner) == 1
        stands_alone = form is None or form.columns or (alone and not form.diagonal)
        if stands_alone and not follows_affine:
            return None  # a convolution after something else: nothing to fuse it with
        if node in self.stops:
            return self.stops[node]
        return (
            why_not_distributed(link, self.appraiser)
            or why_not_gathered(link, self.appraiser)
            or self.forest.refused.get(link.base)
            or across
            or self._stopped_by(link.base)
        )

    def _stopped_by(self, value: fx.Node) -> Refusal:
        """The nearest value above that is not affine: an identity or a view is none."""
        link = self.forest.links.get(value)
        while link is not None and (link.form is None or link.form.identity):
            value = link.base
            link = self.forest.links.get(value)
        kind = "the input " if value.op == "placeholder" else ""
        return Refusal(f"it follows {kind}{value.name}, which is not affine")
