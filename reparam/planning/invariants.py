"""Laws of a decision, as a table that is checked on request."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from reparam.analysis import Facts
from reparam.capture import Invariant
from reparam.planning.planner import Decision
from reparam.planning.regions import Region


def _dying(decision: Decision) -> set[fx.Node]:
    return {node for region in decision.regions for node in region.dying}


def _replaced(region: Region) -> set[fx.Node]:
    """The dying nodes for which another one will stand."""
    path = {link.value for link in region.path} if region.collapses else {region.value}
    totals = {absorbed.total for absorbed in region.absorbed}
    return path | totals | {scale.value for scale in region.scales}


def _read_too_early(decision: Decision, facts: Facts) -> Iterator[fx.Node]:
    for region in decision.regions:
        if facts.order[region.base] >= facts.order[region.value]:
            yield region.value


def _survives(decision: Decision, _: Facts) -> Iterator[fx.Node]:
    for region in decision.regions:
        if region.value not in region.dying:
            yield region.value
        if region.base in region.dying:
            yield region.base


def _still_read(decision: Decision, facts: Facts) -> Iterator[fx.Node]:
    dying = _dying(decision)
    stood_for = {node for region in decision.regions for node in _replaced(region)}
    unimportant = facts.unread | facts.asserted
    for node in dying - stood_for:
        if not dying | unimportant >= set(node.users):
            yield node


def _cannot_die(decision: Decision, _: Facts) -> Iterator[fx.Node]:
    return (node for node in _dying(decision) if node.op in ("placeholder", "output"))


def _reads_what_dies(decision: Decision, _: Facts) -> Iterator[fx.Node]:
    stood_for = {node for region in decision.regions for node in _replaced(region)}
    gone = _dying(decision) - stood_for
    return (region.base for region in decision.regions if region.base in gone)


def _dearer(decision: Decision, _: Facts) -> Iterator[fx.Node]:
    return (region.value for region in decision.regions if region.gain.loses)


def _refused_and_done(decision: Decision, _: Facts) -> Iterator[fx.Node]:
    values = {region.value for region in decision.regions}
    return (node for node in decision.refused if node in values)


DECIDED = (
    Invariant("a region is a form over a value that stands before it", _read_too_early),
    Invariant("the value of a region dies with it, and its base does not", _survives),
    Invariant("who reads a dying node dies, too, or reads what stands for it", _still_read),
    Invariant("inputs and outputs do not die", _cannot_die),
    Invariant("the base of a region stays, or another operator stands for it", _reads_what_dies),
    Invariant("no region costs more than what dies for it", _dearer),
    Invariant("what becomes an operator is not refused", _refused_and_done),
)
"""What is true of every decision."""
