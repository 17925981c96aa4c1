"""What the planner decides for one part, without the regions that its modules do not allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import fx

from reparam.analysis.parts import Part
from reparam.capture.trace import Call
from reparam.errors import Refusal
from reparam.planning.cost_functions import Measure
from reparam.planning.planner import Decision, decide
from reparam.planning.regions import Region

Bans = Mapping[tuple[fx.Node, fx.Node], Refusal]

Veto = Callable[[Region], Refusal | None]

_SHARED = Refusal("its module is used by two parts of the model, traced apart")


@dataclass(frozen=True, eq=False)
class PlannedPart:
    """One part, and what is to become of it.

    Args:
        part: The part.
        measure: By what its operators are weighed.
        veto: Why its modules do not allow a region, if they do not.
        banned: Regions, by value and base, that turned out not to be possible, and why.
        decision: What the planner decided.
        merged: The calls whose code will be a part of their caller's.
        unlike: Identities of the modules whose calls need different code.
    """

    part: Part
    measure: Measure
    veto: Veto
    banned: Bans
    decision: Decision
    merged: frozenset[Call]
    unlike: frozenset[int]

    def without(self, banned: Bans) -> PlannedPart:
        """The same part, planned without some regions, too."""
        return plan_part(
            self.part, self.measure, self.veto, {**self.banned, **banned}, self.merged, self.unlike
        )


def plan_part(
    part: Part,
    measure: Measure,
    veto: Veto,
    banned: Bans,
    merged: frozenset[Call] = frozenset(),
    unlike: frozenset[int] = frozenset(),
) -> PlannedPart:
    """Plan one part, anew until no region is one that its modules do not allow.

    Args:
        part: The part.
        measure: By what its operators are weighed.
        veto: Why its modules do not allow a region, if they do not.
        banned: Regions, by value and base, that must not be, and why.
        merged: The calls whose code will be a part of their caller's.
        unlike: Identities of the modules whose calls need different code.
    """
    banned = dict(banned)
    while True:
        decision = decide(part.trace.graph, part.steps, part.facts, banned, measure)
        vetoed = {
            (region.value, region.base): reason
            for region in decision.regions
            if (reason := _SHARED if part.shares(region.dying) else veto(region)) is not None
        }
        if not vetoed:
            return PlannedPart(part, measure, veto, banned, decision, merged, unlike)
        banned |= vetoed
