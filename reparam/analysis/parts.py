"""The parts of a model that can be traced, each with what is certain of its graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.nn.utils import parametrize

from reparam.analysis.example_run import asked_on, record_calls, record_shapes
from reparam.analysis.extents import Extents
from reparam.analysis.facts import Facts, gather
from reparam.analysis.lifting import lift
from reparam.capture import (
    CAPTURED,
    Call,
    Trace,
    as_trace,
    hold,
    may_run_otherwise,
    read_program,
    recorded_trace,
    recorded_values,
    trace_forward,
)
from reparam.capture.reading import Reach, called_by_methods, forget_classes
from reparam.errors import Refusal, UntraceableError
from reparam.modules import Inputs, fetch, has_hooks, is_as_made, read_from
from reparam.rules import Rules, Step


@dataclass(frozen=True, eq=False)
class Part:
    """One module that could be traced.

    Args:
        trace: Its graph.
        facts: What is known of the graph.
        steps: What each operator does to the forms of its operands.
        rules: The rules of this call.
        elsewhere: Paths below its root of the modules that other code uses, too.
        shared: Identities of the modules that more than one part uses, each apart.
    """

    trace: Trace
    facts: Facts
    steps: Mapping[fx.Node, Step]
    rules: Rules
    elsewhere: frozenset[str] = frozenset()
    shared: frozenset[int] = frozenset()

    @cached_property
    def extents(self) -> Extents:
        """Which axes of its values have the same size."""
        return Extents(self.steps, self.facts)

    def shares(self, nodes: Collection[fx.Node]) -> bool:
        """Whether some nodes lie in modules that two parts use, each traced without the other."""
        return not self.shared.isdisjoint(self.touched(nodes))

    def touched(self, nodes: Collection[fx.Node], roots: Collection[int] = ()) -> set[int]:
        """Identities of the modules whose code or operators some nodes are.

        Calling one of the roots, which are parts of their own, does not look into it.
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
        callers = {caller[node] for node in self.trace.graph.nodes if node not in idle}
        return {call for inner in callers for call in inner.ancestry()}

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


_UNCHANGED = Refusal("keep= lets it stay as it is")


def find_parts(
    model: nn.Module | ExportedProgram, rules: Rules, inputs: Inputs | None
) -> tuple[list[Part], list[Untraced]]:
    """Trace a model as far as possible; a program is one part as it is.

    Raises:
        ReparamError: If the model does not run on the inputs.
    """
    if isinstance(model, ExportedProgram):
        return [_part(as_trace(*read_program(model)), rules)], []
    forget_classes()
    parts, untraced, reach = _capture_all(model, rules, inputs)
    untraced.extend(_alone(model, reach, rules))
    untraced.extend(_opened(model, reach, rules, {id(stays.module) for stays in untraced}))
    return _with_uses(parts, reach), untraced


def _capture_all(
    model: nn.Module, rules: Rules, inputs: Inputs | None
) -> tuple[list[Part], list[Untraced], Reach]:
    """Trace everything as far as possible; who else uses a part is not known yet.

    Returns:
        The parts, the modules that cannot be traced, and what the code of these reaches.
    """
    by_methods = called_by_methods(model)
    paths = {id(module): path for path, module in reversed(list(model.named_modules()))}
    parts: list[Part] = []
    untraced: list[Untraced] = []
    reach = Reach()
    pending: list[nn.Module] = [model]
    seen: set[int] = set()
    given = {} if inputs is None else {id(model): inputs}
    while pending:
        module = pending.pop(0)
        if id(module) in seen or id(module) not in paths:
            continue
        seen.add(id(module))
        path = paths[id(module)]
        if isinstance(module, torch.jit.ScriptModule):
            untraced.append(Untraced(path, module, "it is scripted: its code is not Python's"))
            continue
        try:
            part = _capture(module, rules, path, given.get(id(module)), by_methods)
        except UntraceableError as error:
            untraced.append(Untraced(path, module, error.reason))
            if module is model and inputs is not None:
                given = record_calls(model, inputs, _inner(model, rules))
            reach.follow(module)
            called = {id(child) for child in reach.only_called()}
            pending.extend(
                child
                for child in model.modules()
                if id(child) in called and not _is_operator(child, rules)
            )
        else:
            parts.append(part)
            pending.extend(_opaque_leaves(part.trace, rules))
            pending.extend(_left_out(part))
    return parts, untraced, reach


def _capture(
    module: nn.Module,
    rules: Rules,
    path: str,
    inputs: Inputs | None,
    by_methods: Mapping[int, Collection[tuple[int, str]]],
) -> Part:
    """Trace one module, without regard to the rest of the model.

    Raises:
        UntraceableError: If that cannot be.
    """
    given = None if inputs is None else inputs.by_parameter(module.forward)
    decide = None if inputs is None else partial(asked_on, module, inputs)
    traced = recorded_trace(module, rules, path) or trace_forward(
        module, rules, path=path, given=given, decide=decide
    )
    traced = replace(traced, by_methods=by_methods, unchanged=rules.kept)
    return _part(traced, rules, inputs)


def _part(traced: Trace, rules: Rules, inputs: Inputs | None = None) -> Part:
    """All that is certain of a graph."""
    hold("capture", CAPTURED, traced)
    fixed, dtypes, ranks = recorded_values(traced.graph)
    shapes: Mapping[fx.Node, torch.Size] = fixed
    if inputs is not None:
        shapes, dtypes = record_shapes(traced, inputs)
    facts = gather(traced, rules, shapes, dtypes, ranks, fixed)
    steps, granted = lift(traced.graph, facts, rules, traced.path)
    unchanged = (node for node in steps if traced.is_unchanged(node))
    steps |= dict.fromkeys(unchanged, _UNCHANGED)
    return Part(traced, replace(facts, granted=granted), steps, rules)


def _inner(model: nn.Module, rules: Rules) -> list[nn.Module]:
    """The modules in a model that may be parts of their own."""
    return [
        module
        for module in model.modules()
        if module is not model
        and not isinstance(module, torch.jit.ScriptModule)
        and not _is_operator(module, rules)
    ]


def _is_operator(module: nn.Module, rules: Rules) -> bool:
    """Whether a module is one operator that a rule knows: there is nothing inside to fuse."""
    plain = "forward" not in vars(module) and not parametrize.is_parametrized(module)
    inner = (part for part in module.modules() if part is not module)
    return plain and rules.find(type(module)) is not None and all(map(is_as_made, inner))


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
        elif may_run_otherwise(call) and any(
            id(child) not in entered for child in call.module.children()
        ):
            reach = Reach()
            reach.follow(call.module)
            yield from (module for module in reach.only_called() if id(module) not in entered)


def _used_otherwise(part: Part) -> set[int]:
    """What forwards use of what is inside their parts when they get other arguments."""
    found: set[int] = set()
    for call in part.trace.calls:
        if may_run_otherwise(call) and any(True for _ in call.module.children()):
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


def _with_uses(parts: list[Part], reach: Reach) -> list[Part]:
    """The parts, each with what else uses the modules that its code uses."""
    roots = {id(part.trace.root) for part in parts}
    running = [part.running() for part in parts]
    users = Counter(
        key
        for part, nodes in zip(parts, running, strict=True)
        for key in part.touched(nodes, roots) | part.typed()
    )
    users.update(reach.opened | (reach.called.keys() - roots))
    users.update(key for part in parts for key in _used_otherwise(part))
    shared = frozenset(key for key, count in users.items() if count > 1)
    named = [part.touched(nodes) for part, nodes in zip(parts, running, strict=True)]
    namings = Counter(chain(reach.opened, *named))
    return [
        replace(
            part,
            shared=shared,
            elsewhere=frozenset(
                path
                for path, module in part.trace.root.named_modules(remove_duplicate=False)
                if namings[id(module)] > (id(module) in own)
            ),
        )
        for part, own in zip(parts, named, strict=True)
    ]
