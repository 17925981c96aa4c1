"""Each law of decisions notices a decision that breaks it, and names the node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from torch import fx, nn

from reparam.analysis.facts import Facts
from reparam.analysis.parts import find_parts
from reparam.capture.invariants import hold
from reparam.errors import InvariantError, Refusal
from reparam.modules.call_checks import AtWork
from reparam.planning.cost_functions import Cost
from reparam.planning.invariants import DECIDED
from reparam.planning.planner import Decision, decide
from reparam.rules import Rules


def planned() -> tuple[Decision, Facts]:
    """Two regions, one behind the other: a convolution and its norm, twice."""
    layers = [
        nn.Conv2d(3, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 3, 1),
        nn.BatchNorm2d(3),
    ]
    with AtWork():
        (part,), _ = find_parts(nn.Sequential(*layers).eval(), Rules(None), None)
        return decide(part.trace.graph, part.steps, part.facts, {}), part.facts


def change(decision: Decision, **fields: object) -> Decision:
    """The decision with another first region."""
    first, *others = decision.regions
    return Decision([replace(first, **fields), *others], decision.refused)


def named(facts: Facts, name: str) -> fx.Node:
    return next(node for node in facts.order if node.name == name)


def early(decision: Decision, facts: Facts) -> Decision:
    return change(decision, base=named(facts, "_2"))


def surviving(decision: Decision, facts: Facts) -> Decision:
    return change(decision, dying=frozenset({named(facts, "_0")}))


def still_read(decision: Decision, facts: Facts) -> Decision:
    first, _ = decision.regions
    return Decision([replace(first, dying=first.dying | {named(facts, "_2")})], {})


def no_node_to_remove(decision: Decision, facts: Facts) -> Decision:
    first = decision.regions[0]
    return change(decision, dying=first.dying | {named(facts, "output")})


def read_when_gone(decision: Decision, facts: Facts) -> Decision:
    return change(decision, dying=decision.regions[0].dying | {decision.regions[1].base})


def dearer(decision: Decision, facts: Facts) -> Decision:
    return change(decision, gain=Cost(-1.0, 1))


def refused(decision: Decision, facts: Facts) -> Decision:
    return Decision(decision.regions, {decision.regions[0].value: Refusal("no")})


BREAKING: dict[Callable[[Decision, Facts], Decision], tuple[str, str]] = {
    early: ("%_1 ", "a region is a form over a value that stands before it"),
    surviving: ("%_1 ", "the value of a region dies with it, and its base does not"),
    still_read: ("%_2 ", "who reads a dying node dies, too, or reads what stands for it"),
    no_node_to_remove: ("return", "inputs and outputs do not die"),
    read_when_gone: ("%_2 ", "the base of a region stays, or another operator stands for it"),
    dearer: ("%_1 ", "no region costs more than what dies for it"),
    refused: ("%_1 ", "what becomes an operator is not refused"),
}


def test_every_law_has_a_decision_that_breaks_it() -> None:
    assert [invariant.law for invariant in DECIDED] == [law for _, law in BREAKING.values()]


@pytest.mark.parametrize("breaks", BREAKING, ids=lambda breaks: breaks.__name__)
def test_a_broken_decision_is_noticed(breaks: Callable[[Decision, Facts], Decision]) -> None:
    decision, facts = planned()
    hold("planning", DECIDED, decision, facts)
    culprit, law = BREAKING[breaks]
    broken = breaks(decision, facts)
    (invariant,) = [invariant for invariant in DECIDED if invariant.law == law]
    with pytest.raises(InvariantError, match="mistake of reparam") as raised:
        hold("planning", [invariant], broken, facts)
    assert culprit in str(raised.value)
    assert law in str(raised.value)
    with pytest.raises(InvariantError):
        hold("planning", DECIDED, broken, facts)
