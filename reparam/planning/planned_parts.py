"""What is to become of one part: decided without the regions that its modules do not allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import fx

from reparam.analysis import Part
from reparam.capture import Call, hold
from reparam.errors import Refusal
from reparam.planning.cost_functions import MACS, Measure
from reparam.planning.folding import Folding
from reparam.planning.invariants import DECIDED
from reparam.planning.planner import Decision, decide
from reparam.planning.regions import Region

Veto = Callable[[Region], Refusal | None]

_SHARED = Refusal("its module is used by two parts of the model, traced apart")

_UNCHECKED = Refusal(
    "it rests on the number of axes of its input, which is likely, but could not be checked; pass "
    "example_inputs"
)


@dataclass(frozen=True, eq=False)
class PlannedPart:
    """One part, and what is to become of it.

    Args:
        part: The part.
        vetoes: Given the part and what is merged, it gives what says of a region why the modules
            around it do not allow it, if they do not.
        measure: By what its operators are weighed.
        banned: Regions, by value and base, that turned out not to be possible, and why.
        merged: The calls whose code will be a part of their caller's.
        unlike: Identities of the modules whose calls need different code.
        folding: The wish that norms hand their weights to what reads them, if it is one.
        decision: What the planner decided.
    """

    part: Part
    vetoes: Callable[[Part, frozenset[Call]], Veto]
    measure: Measure = MACS
    banned: Mapping[tuple[fx.Node, fx.Node], Refusal] = field(default_factory=dict)
    merged: frozenset[Call] = frozenset()
    unlike: frozenset[int] = frozenset()
    folding: Folding | None = None
    decision: Decision = field(default_factory=Decision)

    def decided(self) -> PlannedPart:
        """The same, planned anew until no region is one that its modules do not allow."""
        part, banned = self.part, dict(self.banned)
        veto = self.vetoes(part, self.merged)
        while True:
            decision = decide(
                part.trace.graph, part.steps, part.facts, banned, self.measure, self.folding
            )
            hold("planning", DECIDED, decision, part.facts)
            vetoed = {
                (region.value, region.base): reason
                for region in decision.regions
                if (reason := _of_part(region, part) or veto(region)) is not None
            }
            if not vetoed:
                return replace(self, banned=banned, decision=decision)
            banned |= vetoed

    def without(self, regions: Mapping[Region, Refusal]) -> PlannedPart:
        """The same, planned anew without some regions."""
        banned = {(region.value, region.base): reason for region, reason in regions.items()}
        return replace(self, banned={**self.banned, **banned}).decided()


def _of_part(region: Region, part: Part) -> Refusal | None:
    """Why a region may not be fused that its part would allow."""
    if part.shares(region.dying):
        return _SHARED
    ranks, granted = part.facts.ranks, part.facts.granted.axes
    resting = (link for link in region.links if not granted.isdisjoint(link.inner))
    read = {link.base for link in resting}
    if not granted.isdisjoint(region.own):
        read.add(region.source)
    return None if read <= ranks.keys() else _UNCHECKED
