"""The parts of a model that can be traced, and what the planner decides for each."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from reparam.eager import Reach
from reparam.errors import Refusal, ReparamError
from reparam.facts import Facts, gather
from reparam.lifting import lift
from reparam.modules import fetch, has_hooks
from reparam.planner import Decision, decide
from reparam.regions import Region
from reparam.rewriting import Rewriter, frame_problem
from reparam.rules import Rules, Step
from reparam.shapes import record_shapes
from reparam.tracing import Trace, UntraceableError, trace


@dataclass(eq=False)
class Part:
    """One module that could be traced.

    Args:
        trace: Its graph.
        facts: What is known of the graph.
        steps: What each operator does to the forms of its operands.
        banned: Regions, by value and base, that turned out not to be possible.
        decision: What the planner decided.
    """

    trace: Trace
    facts: Facts
    steps: Mapping[fx.Node, Step]
    banned: dict[tuple[fx.Node, fx.Node], Refusal] = field(default_factory=dict)
    decision: Decision = field(default_factory=Decision)

    def decide(self) -> None:
        """Plan anew until no region is one that its modules do not allow."""
        stateful = Rewriter(self.trace, self.facts) if self.trace.stateful else None
        while True:
            self.decision = decide(self.trace.graph, self.steps, self.facts, self.banned)
            problems = [
                (region, problem)
                for region in self.decision.regions
                if stateful and (problem := frame_problem(stateful, region)) is not None
            ]
            for region, problem in problems:
                self.ban(region, problem)
            if not problems:
                return

    def ban(self, region: Region, reason: Refusal) -> None:
        """Exclude a region from the next decision."""
        self.banned[region.value, region.base] = reason

    def touched(self, nodes: fx.Graph | frozenset[fx.Node]) -> set[int]:
        """Identities of the modules whose code or operators some nodes are."""
        found: set[int] = set()
        for node in nodes.nodes if isinstance(nodes, fx.Graph) else nodes:
            found.update(id(call.module) for call in (self.trace.caller[node],))
            if node.op == "call_module" and node in self.steps:
                found.add(id(fetch(self.trace.root, str(node.target))))
        return found


@dataclass(frozen=True)
class Untraced:
    """A module that stays as it is because its forward cannot be traced."""

    path: str
    module: nn.Module
    reason: str


def find_parts(
    model: nn.Module, rules: Rules, inputs: tuple[Any, ...] | None
) -> tuple[list[Part], list[Untraced]]:
    """Trace a model as far as possible and plan every part.

    Args:
        model: The model.
        rules: The rules of this call.
        inputs: Example inputs of the model.

    Raises:
        ReparamError: If the model does not run on the inputs.
    """
    parts: list[Part] = []
    untraced: list[Untraced] = []
    reach = Reach()
    paths = {id(module): path for path, module in reversed(list(model.named_modules()))}
    pending: list[nn.Module] = [model]
    seen: set[int] = set()
    while pending:
        module = pending.pop(0)
        if id(module) in seen or id(module) not in paths:
            continue
        seen.add(id(module))
        path = paths[id(module)]
        if isinstance(module, torch.jit.ScriptModule):
            untraced.append(Untraced(path, module, "it is scripted: its code is not Python's"))
            continue
        given = _given(model, inputs) if module is model and inputs is not None else None
        try:
            traced = trace(module, rules, path=path, given=given)
        except UntraceableError as error:
            untraced.append(Untraced(path, module, error.reason))
            reach.follow(module)
            pending.extend(reach.only_called())
            continue
        shapes: dict[fx.Node, torch.Size] = {}
        dtypes: dict[fx.Node, torch.dtype] = {}
        if module is model and inputs is not None:
            shapes, dtypes = record_shapes(traced, inputs)
        facts = gather(module, traced.graph, rules, shapes, dtypes)
        parts.append(Part(traced, facts, lift(traced.graph, facts, rules)))
        pending.extend(_opaque_leaves(traced, rules))
    users = Counter(key for part in parts for key in part.touched(part.trace.graph))
    users.update(reach.opened | (reach.called.keys() - {id(part.trace.root) for part in parts}))
    for part in parts:
        part.decide()
        while _ban_shared(part, users):
            part.decide()
    return parts, untraced


def _opaque_leaves(traced: Trace, rules: Rules) -> Iterator[nn.Module]:
    """The modules in a graph into which it does not look."""
    for node in traced.graph.nodes:
        if node.op == "call_module":
            leaf = fetch(traced.root, str(node.target))
            known = rules.find(type(leaf)) is not None and not has_hooks(leaf)
            foreign = not type(leaf).__module__.startswith("torch.")
            holds = has_hooks(leaf) and any(True for _ in leaf.children())
            if (not known and (foreign or holds)) or parametrize.is_parametrized(leaf):
                yield leaf


def _ban_shared(part: Part, users: Counter[int]) -> bool:
    """Ban what lies in modules that two parts use, each traced without the other."""
    shared = [
        region
        for region in part.decision.regions
        if any(users[key] > 1 for key in part.touched(region.dying))
    ]
    for region in shared:
        part.ban(region, Refusal("its module is used by two parts of the model, traced apart"))
    return bool(shared)


def _given(model: nn.Module, inputs: tuple[Any, ...]) -> set[str]:
    """The parameters of the model's forward that the example inputs give."""
    try:
        return set(inspect.signature(model.forward).bind(*inputs).arguments)
    except TypeError as error:
        raise ReparamError(f"example_inputs do not fit the model's forward: {error}") from None
