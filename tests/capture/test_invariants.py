"""Each law of graphs notices a graph that breaks it, and names the node."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from reparam.capture.invariants import CAPTURED, GRAPH, SWITCH, hold
from reparam.capture.trace import Trace
from reparam.capture.tracing_attempts import trace_forward
from reparam.errors import InvariantError, ReparamError
from reparam.rules import Rules


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + 1


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(x))


@pytest.fixture
def captured() -> Trace:
    return trace_forward(Outer().eval(), Rules(None))


def node(captured: Trace, name: str) -> fx.Node:
    return next(node for node in captured.graph.nodes if node.name == name)


def read_too_early(captured: Trace) -> None:
    node(captured, "relu").append(node(captured, "inner_conv"))


def read_from_outside(captured: Trace) -> None:
    other = fx.Graph()
    other.call_function(torch.relu, (node(captured, "add"),))


def late_input(captured: Trace) -> None:
    with captured.graph.inserting_after(node(captured, "add")):
        captured.caller[captured.graph.placeholder("late")] = captured.calls[0]


def made_by_nobody(captured: Trace) -> None:
    del captured.caller[node(captured, "add")]


def not_nested(captured: Trace) -> None:
    captured.calls[1].parent = captured.calls[1]


def leads_nowhere(captured: Trace) -> None:
    del captured.root.inner.conv


def elsewhere(captured: Trace) -> None:
    captured.calls[1].path = "inner.conv"


def of_another_graph(captured: Trace) -> None:
    captured.calls[1].result = fx.Graph().placeholder("other")


BREAKING: dict[Callable[[Trace], None], tuple[str, str]] = {
    read_too_early: ("%add", "a node reads only nodes that stand before it"),
    read_from_outside: ("%add", "who reads a node is in its graph"),
    late_input: ("late", "placeholders come first, and one output comes last"),
    made_by_nobody: ("%add", "a node was made by one of the calls of its trace"),
    not_nested: ("the call of inner", "only the first by none"),
    leads_nowhere: ("%inner_conv", "a path leads to a module or a tensor of the root"),
    elsewhere: ("the call of inner.conv", "the path of a call leads to its module"),
    of_another_graph: ("other", "what a call was given and returned are nodes of its graph"),
}


def test_every_law_has_a_graph_that_breaks_it() -> None:
    laws = {law for _, law in BREAKING.values()}
    assert all(any(law in invariant.law for law in laws) for invariant in CAPTURED)
    assert len(CAPTURED) == len(BREAKING)


@pytest.mark.parametrize("breaks", BREAKING, ids=lambda breaks: breaks.__name__)
def test_a_broken_graph_is_noticed(breaks: Callable[[Trace], None], captured: Trace) -> None:
    hold("capture", CAPTURED, captured)
    breaks(captured)
    culprit, law = BREAKING[breaks]
    with pytest.raises(InvariantError) as raised:
        hold("capture", CAPTURED, captured)
    assert culprit in str(raised.value)
    assert law in str(raised.value)
    assert isinstance(raised.value, ReparamError)


def test_the_tests_switch_it_on_and_others_need_not(
    captured: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert os.environ[SWITCH] == "1"
    made_by_nobody(captured)
    for off in ("", "0"):
        monkeypatch.setenv(SWITCH, off)
        hold("capture", CAPTURED, captured)
    assert set(GRAPH) < set(CAPTURED)
