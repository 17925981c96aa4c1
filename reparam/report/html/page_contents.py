"""What is on the page, as plain data."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from torch import fx

from reparam.planning import PlannedPart
from reparam.report.entries import RefusedRow
from reparam.report.html.blocks import Block, find_blocks
from reparam.report.html.drawn_graphs import DrawnGraph, drawn_nodes, graph_after, graph_before
from reparam.report.html.region_details import Computed, RegionDetails, region_details
from reparam.report.tables import Report


@dataclass(frozen=True)
class PartPicture:
    """The graphs of one part.

    Args:
        blocks: The blocks that they are drawn in; the first is the part itself.
        before: Its graph as it is.
        after: Its graph once it is fused.
    """

    blocks: tuple[Block, ...]
    before: DrawnGraph
    after: DrawnGraph


@dataclass(frozen=True)
class Page:
    """All that the page shows.

    Args:
        model: The class of the model.
        summary: The result in one line.
        parts: The graphs; none where no part of the model can be traced.
        regions: One entry per value that becomes one operator.
        refused: One row per operator that stays, or that has no graph.
        notes: What else a user should know.
    """

    model: str
    summary: str
    parts: tuple[PartPicture, ...]
    regions: tuple[RegionDetails, ...]
    refused: tuple[RefusedRow, ...]
    notes: tuple[str, ...]

    @property
    def operators(self) -> tuple[int, int]:
        """Operators that are drawn, before and after."""
        return (
            sum(part.before.operators for part in self.parts),
            sum(part.after.operators for part in self.parts),
        )


def plan_page(report: Report, parts: Sequence[PlannedPart], *, verify: bool) -> Page:
    """The page of a plan.

    Args:
        report: The tables of the plan.
        parts: The planned parts.
        verify: Compare every region in float64 with what will replace it.

    Returns:
        The page.
    """
    pictures: list[PartPicture] = []
    regions: list[RegionDetails] = []
    refused = len(report.refused) - sum(len(planned.decision.refused) for planned in parts)
    for planned in parts:
        part, decision = planned.part, planned.decision
        known: dict[Hashable, Computed] = {}
        refusals: dict[fx.Node, int] = {}
        for node in decision.refused:
            refused += 1
            refusals[node] = refused
        own = [
            region_details(part, number, region, known, verify=verify)
            for number, region in enumerate(decision.regions, len(regions) + 1)
        ]
        numbers = {
            region: details.number for region, details in zip(decision.regions, own, strict=True)
        }
        results = {details.number: details.row.result for details in own}
        regions.extend(own)
        found = find_blocks(part, drawn_nodes(part))
        before = graph_before(part, found.holder, numbers, refusals)
        after = graph_after(part, found.holder, numbers, refusals, results)
        pictures.append(PartPicture(found.blocks, before, after))
    return Page(
        report.model,
        report.summary(),
        tuple(pictures),
        tuple(regions),
        tuple(report.refused),
        tuple(report.notes),
    )
