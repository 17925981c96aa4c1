"""Plan a part, and ask of every region whether the modules around it may be rewritten for it."""

from __future__ import annotations

from functools import partial

from reparam.analysis.parts import Part
from reparam.capture.trace import Call
from reparam.errors import Refusal
from reparam.planning.cost_functions import Measure
from reparam.planning.planned_parts import Bans, PlannedPart, Veto, plan_part
from reparam.planning.regions import Region
from reparam.rewriting.changes import unedited
from reparam.rewriting.placement import Placer
from reparam.rewriting.rewriter import frame_problem


def plan_allowed(
    part: Part,
    measure: Measure,
    banned: Bans | None = None,
    merged: frozenset[Call] = frozenset(),
    unlike: frozenset[int] = frozenset(),
) -> PlannedPart:
    """Plan one part.

    Args:
        part: The part.
        measure: By what its operators are weighed.
        banned: Regions, by value and base, that must not be, and why.
        merged: The calls whose code will be a part of their caller's.
        unlike: Identities of the modules whose calls need different code.
    """
    return plan_part(part, measure, _veto(part, merged), banned or {}, merged, unlike)


def _veto(part: Part, merged: frozenset[Call]) -> Veto:
    if not part.trace.stateful:
        return _allow
    return partial(frame_problem, Placer(part.trace, part.facts, unedited(part.trace), merged))


def _allow(region: Region) -> Refusal | None:
    del region
    return None
