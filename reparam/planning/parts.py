"""The parts of a model that can be traced, and what the planner decides for each."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.nn.utils import parametrize

from reparam.analysis.example_run import record_shapes
from reparam.analysis.facts import Facts, gather
from reparam.analysis.lifting import lift
from reparam.capture.programs import read_program
from reparam.capture.reading.reach import Reach, called_by_methods
from reparam.capture.reading.source import forget_classes
from reparam.capture.recorded import as_trace, recorded_trace, recorded_values
from reparam.capture.structures import nodes_in
from reparam.capture.trace import Call, Trace, knows_only_tensors
from reparam.capture.tracing import trace
from reparam.errors import Refusal, ReparamError, UntraceableError
from reparam.modules.tree import fetch, has_hooks, read_from
from reparam.planning.cost_functions import MACS, Measure
from reparam.planning.planner import Decision, decide
from reparam.planning.regions import Region
from reparam.rewriting.rewriter import Rewriter, frame_problem
from reparam.rules import Rules, Step

_SHARED = Refusal("its module is used by two parts of the model, traced apart")


@dataclass(eq=False)
class Part:
    """One module that could be traced.

    Args:
        trace: Its graph.
        facts: What is known of the graph.
        steps: What each operator does to the forms of its operands.
        rules: The rules of this call.
        banned: Regions, by value and base, that turned out not to be possible.
        decision: What the planner decided.
        make: Makes the part once more.
        merged: Numbers of the calls whose code will be a part of their caller's.
        unlike: Identities of the modules whose calls need different code.
        elsewhere: Paths below its root of the modules that other code uses, too.
        shared: Identities of the modules that more than this part uses, each apart.
        measure: By what its operators are weighed.
    """

    trace: Trace
    facts: Facts
    steps: Mapping[fx.Node, Step]
    rules: Rules
    banned: dict[tuple[fx.Node, fx.Node], Refusal] = field(default_factory=dict)
    decision: Decision = field(default_factory=Decision)
    make: Callable[[], Part] | None = None
    merged: frozenset[int] = frozenset()
    unlike: frozenset[int] = frozenset()
    elsewhere: frozenset[str] = frozenset()
    shared: frozenset[int] = frozenset()
    measure: Measure = MACS

    def decide(self) -> None:
        """Plan anew until no region is one that its modules do not allow."""
        stateful = Rewriter(self.trace, self.facts, self.merged) if self.trace.stateful else None
        while True:
            self.decision = decide(
                self.trace.graph, self.steps, self.facts, self.banned, self.measure
            )
            problems = [
                (region, problem)
                for region in self.decision.regions
                if stateful and (problem := frame_problem(stateful, region)) is not None
            ]
            problems += [
                (region, _SHARED) for region in self.decision.regions if self._shares(region)
            ]
            for region, problem in problems:
                self.ban(region, problem)
            if not problems:
                return

    def _shares(self, region: Region) -> bool:
        """Whether a region lies in modules that two parts use, each traced without the other."""
        return not self.shared.isdisjoint(self.touched(region.dying))

    def ban(self, region: Region, reason: Refusal) -> None:
        """Exclude a region from the next decision."""
        self.banned[region.value, region.base] = reason

    def anew(self, regions: Collection[Region], reason: Refusal) -> Part:
        """The part with a graph that is not edited yet, planned without some regions.

        Args:
            regions: The regions to exclude besides those that are excluded already.
            reason: Why.
        """
        if self.make is None:
            raise RuntimeError("a part that cannot be made again")
        fresh = self.make()
        fresh.make, fresh.elsewhere, fresh.shared = self.make, self.elsewhere, self.shared
        fresh.merged, fresh.unlike, fresh.measure = self.merged, self.unlike, self.measure
        for region in regions:
            self.ban(region, reason)
        nodes = {node.name: node for node in fresh.facts.order}
        for key, refusal in self.banned.items():
            value, base = (nodes[node.name] for node in key)
            fresh.banned[value, base] = refusal
        fresh.decide()
        return fresh

    def touched(self, nodes: Iterable[fx.Node], roots: Collection[int] = ()) -> set[int]:
        """Identities of the modules whose code or operators some nodes are.

        Args:
            nodes: The nodes.
            roots: Modules that are parts of their own: calling one does not look into it.
        """
        callers = {id(self.trace.caller[node].module) for node in nodes}
        leaves = {
            id(fetch(self.trace.root, str(node.target)))
            for node in nodes
            if node.op == "call_module"
        }
        read = {
            id(read_from(self.trace.root, str(node.target)))
            for node in nodes
            if node.op == "get_attr"
        }
        return callers | leaves.difference(roots) | read

    def live(self) -> set[Call]:
        """The calls that compute something that is read or passed."""
        idle, caller = self.facts.idle, self.trace.caller
        nodes = (node for node in self.trace.graph.nodes if node not in idle)
        return {call for node in nodes for call in caller[node].ancestry()}

    def running(self) -> list[fx.Node]:
        """The nodes that run as long as the code is what it is, but for those in idle calls."""
        live = self.live()
        return [node for node in self.trace.graph.nodes if self.trace.caller[node] in live]

    def typed(self) -> set[int]:
        """Identities of the modules whose weights tell the type of a value."""
        root = self.trace.root
        return {id(read_from(root, path)) for call in self.trace.calls for path in call.typed}


@dataclass(frozen=True)
class Untraced:
    """A module that stays as it is because its forward cannot be traced."""

    path: str
    module: nn.Module
    reason: str


def find_parts(
    model: nn.Module, rules: Rules, inputs: tuple[Any, ...] | None
) -> tuple[list[Part], list[Untraced]]:
    """Trace a model as far as possible; what each part becomes is not decided yet.

    Args:
        model: The model.
        rules: The rules of this call.
        inputs: Example inputs of the model.

    Raises:
        ReparamError: If the model does not run on the inputs.
    """
    forget_classes()
    by_methods = called_by_methods(model)
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
            own = inputs if module is model else None
            make = partial(_make, module, rules, path, given, own, by_methods)
            part = make()
        except UntraceableError as error:
            untraced.append(Untraced(path, module, error.reason))
            reach.follow(module)
            called = {id(part) for part in reach.only_called()}
            pending.extend(
                part
                for part in model.modules()
                if id(part) in called and not _is_operator(part, rules)
            )
            continue
        part.make = make
        parts.append(part)
        pending.extend(_opaque_leaves(part.trace, rules))
        pending.extend(_left_out(part))
    roots = {id(part.trace.root) for part in parts}
    untraced.extend(_alone(model, reach, rules))
    untraced.extend(_opened(model, reach, rules, {id(stays.module) for stays in untraced}))
    users = Counter(
        key for part in parts for key in part.touched(part.running(), roots) | part.typed()
    )
    users.update(reach.opened | (reach.called.keys() - roots))
    users.update(key for part in parts for key in _used_otherwise(part))
    for part in parts:
        part.shared = frozenset(key for key, count in users.items() if count > 1)
    _note_uses_elsewhere(parts, reach)
    return parts, untraced


def _is_operator(module: nn.Module, rules: Rules) -> bool:
    """Whether a module is one operator that a rule knows: there is nothing inside to fuse."""
    plain = "forward" not in vars(module) and not parametrize.is_parametrized(module)
    return plain and rules.find(type(module)) is not None


def _alone(model: nn.Module, reach: Reach, rules: Rules) -> Iterator[Untraced]:
    """The operators whose neighbours are not known, since eager code calls them one by one."""
    for path, module in model.named_modules():
        alone = id(module) in reach.called and _is_operator(module, rules)
        if alone and any(True for _ in chain(module.parameters(), module.buffers())):
            yield Untraced(
                path, module, "it is called by code that cannot be traced: its input is not known"
            )


def _opened(
    model: nn.Module, reach: Reach, rules: Rules, listed: Collection[int]
) -> Iterator[Untraced]:
    """The modules that eager code calls, but of which it also uses what is inside."""
    above: tuple[str, ...] = ()
    for path, module in model.named_modules():
        used = id(module) in reach.called and id(module) in reach.opened
        inside = bool(above) and path.startswith(above)
        if used and not inside and id(module) not in listed and not _is_operator(module, rules):
            above += (f"{path}.",)
            yield Untraced(path, module, "code that cannot be traced uses what is inside it")


def _left_out(part: Part) -> Iterator[nn.Module]:
    """The modules that run although the graph does not need them.

    Some only run when a forward gets other arguments than it was traced with. Of others nobody
    reads the result.
    """
    traced = part.trace
    idle = part.facts.idle
    nodes = [node for node in traced.graph.nodes if node not in idle]
    live = part.live()
    entered = {id(call.module) for call in live} | part.touched(nodes)
    for call in traced.calls:
        if call not in live and (call.parent is None or call.parent in live):
            if id(call.module) not in entered:
                yield call.module
        elif not knows_only_tensors(call) and any(
            id(child) not in entered for child in call.module.children()
        ):
            reach = Reach()
            reach.follow(call.module)
            yield from (module for module in reach.only_called() if id(module) not in entered)


def _used_otherwise(part: Part) -> set[int]:
    """What forwards use of what is inside their parts when they get other arguments."""
    found: set[int] = set()
    for call in part.trace.calls:
        if not knows_only_tensors(call) and any(True for _ in call.module.children()):
            reach = Reach(trusting=True)
            reach.follow(call.module)
            found |= reach.opened - {id(call.module)}
    return found


def _opaque_leaves(traced: Trace, rules: Rules) -> Iterator[nn.Module]:
    """The modules in a graph into which it does not look."""
    for node in traced.graph.nodes:
        if node.op == "call_module":
            leaf = fetch(traced.root, str(node.target))
            known = rules.find(type(leaf)) is not None and not has_hooks(leaf)
            foreign = not type(leaf).__module__.startswith("torch.")
            holds = any(True for _ in leaf.children())
            if (not known and (foreign or holds)) or parametrize.is_parametrized(leaf):
                yield leaf


def _make(
    module: nn.Module,
    rules: Rules,
    path: str,
    given: Mapping[str, Any] | None,
    inputs: tuple[Any, ...] | None,
    by_methods: Mapping[int, Collection[tuple[int, str]]],
) -> Part:
    traced = recorded_trace(module, rules, path) or trace(module, rules, path=path, given=given)
    traced.by_methods = by_methods
    recorded = recorded_values(traced.graph)
    shapes, dtypes = recorded.shapes, recorded.dtypes
    if inputs is not None:
        shapes, dtypes = record_shapes(traced, inputs)
    calls = [
        (list(nodes_in((call.args, call.kwargs))), list(nodes_in(call.result)))
        for call in traced.calls
    ]
    facts = gather(
        module, traced.graph, rules, shapes, dtypes, recorded.ranks, calls, inner=bool(path)
    )
    return Part(traced, facts, lift(traced.graph, facts, rules, path), rules)


def _note_uses_elsewhere(parts: Iterable[Part], reach: Reach) -> None:
    """Note for each part what must not be removed with its code."""
    uses = {part: part.touched(part.trace.graph.nodes) for part in parts}
    for part in parts:
        others = set(reach.opened).union(*(uses[other] for other in parts if other is not part))
        below = part.trace.root.named_modules(remove_duplicate=False)
        part.elsewhere = frozenset(path for path, module in below if id(module) in others)


def _given(model: nn.Module, inputs: tuple[Any, ...]) -> Mapping[str, Any]:
    """The parameters of the model's forward that the example inputs give."""
    try:
        return inspect.signature(model.forward).bind(*inputs).arguments
    except TypeError as error:
        raise ReparamError(f"example_inputs do not fit the model's forward: {error}") from None


def program_part(program: ExportedProgram, rules: Rules) -> Part:
    """Read a program as one part; what it becomes is not decided yet.

    Args:
        program: The program; it is not changed.
        rules: The rules of this call.
    """
    root, graph = read_program(program)
    values = recorded_values(graph)
    facts = gather(root, graph, rules, values.shapes, values.dtypes, values.ranks)
    return Part(as_trace(root, graph), facts, lift(graph, facts, rules), rules)
