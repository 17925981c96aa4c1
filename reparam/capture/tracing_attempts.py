"""Trace a forward in several attempts: each tells what the next one must leave alone.

Tracing runs the user's code on proxies. Whatever that code does to the model on the way is undone,
and a module that writes, draws random numbers, or cannot be traced becomes a leaf and stays.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from threading import get_ident
from typing import Any

import torch
from torch import fx, nn

from reparam.capture.given_arguments import Reading, readings
from reparam.capture.public_methods import classes_with_ways_in, noting_ways_in
from reparam.capture.stand_ins import (
    MOST_DECISIONS,
    Answer,
    Decide,
    LeafFunction,
    Outlined,
    UndonePatches,
    answering_for_proxies,
    as_leaves,
    failing_function,
    found_in_modules,
    place_of_failure,
    running_outlined,
    with_failing_outlined,
)
from reparam.capture.structures import can_be_built, nodes_in
from reparam.capture.trace import Call, Trace, WayIn
from reparam.capture.tracer import Tracer
from reparam.errors import MadeTensorError, UntraceableError
from reparam.rules import Rules

_CONTEXTS: list[Any] = [torch.autocast, torch.no_grad, torch.enable_grad, torch.inference_mode]


def trace_forward(
    root: nn.Module,
    rules: Rules,
    *,
    path: str = "",
    given: Mapping[str, Any] | None = None,
    decide: Decide | None = None,
) -> Trace:
    """Trace a module's forward, with whatever cannot be traced as a leaf.

    Args:
        root: The module.
        rules: The rules of this call; a module type or a function with a rule is a leaf.
        path: Where the module is registered in the user's model.
        given: Parameters of the forward that the user gives.
        decide: Tells what conditions are on example inputs.

    Raises:
        UntraceableError: If the module's own forward cannot be traced.
    """
    given = given or {}
    best: _Traced | None = None
    problem: UntraceableError | None = None
    for reading in readings(given):
        if reading.whole and best is not None and not best.filling:
            continue
        try:
            traced = _trace(root, rules, path, given, _Lessons(reading), decide)
        except UntraceableError as error:
            problem = problem or error
            continue
        if best is None or traced.left < best.left:
            best = traced
        if not best.left:
            break
    if best is None:
        raise problem or UntraceableError("it cannot be traced")
    return best.trace


@dataclass(frozen=True)
class _Traced:
    """What came of tracing.

    Args:
        trace: The trace.
        filling: How many calls put something into containers that they are given.
        left: How many calls and functions are left alone, those included.
    """

    trace: Trace
    filling: int
    left: int


def _trace(
    root: nn.Module,
    rules: Rules,
    path: str,
    given: Mapping[str, Any],
    lessons: _Lessons,
    decide: Decide | None,
) -> _Traced:
    """Trace a forward in as many attempts as it takes.

    Raises:
        UntraceableError: If it cannot be traced.
    """
    # torch's assertion is one node, too: run on proxies it asks whether its condition holds.
    ruled = list(found_in_modules([torch._assert, *rules.functions()]))
    while True:
        result, tracer = _attempt(root, rules, given, ruled, lessons)
        if isinstance(result, Exception):
            lessons = _learn_from_failure(result, tracer, lessons, decide)
        elif (further := _learn_from_run(tracer, lessons)) is not None:
            lessons = further
        else:
            trace, filling = _finished(result, tracer, path), len(_filling(tracer))
            return _Traced(trace, filling, len(lessons.opaque) + len(lessons.functions) + filling)


@dataclass(frozen=True)
class _Lessons:
    """What earlier attempts tell of the next one.

    Args:
        reading: How the arguments are read.
        opaque: Identities and types of the modules that have to be leaves.
        functions: The functions that have to be leaves.
        outlined: The functions pieces of whose code are called.
        making: Identities of the modules of which what makes tensors of numbers is recorded.
        given_up: Those of which it was, to no avail.
        decided: What example inputs decide of the way that the forward takes.
        drew: Whether somebody drew random numbers.
        keeping: Whether proxies stand for the tensors that the model keeps unregistered.
        twice: Whether the forward runs twice, to see whether it does the same again.
    """

    reading: Reading
    opaque: frozenset[Any] = frozenset()
    functions: tuple[LeafFunction, ...] = ()
    outlined: tuple[Outlined, ...] = ()
    making: frozenset[int] = frozenset()
    given_up: frozenset[int] = frozenset()
    decided: tuple[Answer, ...] = ()
    drew: bool = False
    keeping: bool = False
    twice: bool = False

    @property
    def notices_random(self) -> bool:
        """Whether to find out which module draws random numbers: their state is slow to read."""
        return self.drew or bool(self.opaque)

    def with_leaves(self, modules: Set[Any], root: nn.Module, reason: str) -> _Lessons:
        """The same with more leaves; if the root is among them it cannot be traced."""
        if id(root) in modules:
            raise UntraceableError(reason)
        return replace(self, opaque=self.opaque | modules)

    def without_making(self, modules: Set[int]) -> _Lessons:
        """The same, but what some modules make of numbers is not recorded again."""
        return replace(self, making=self.making - modules, given_up=self.given_up | modules)


def _attempt(
    root: nn.Module,
    rules: Rules,
    inputs: Mapping[str, Any],
    ruled: Sequence[LeafFunction],
    lessons: _Lessons,
) -> tuple[fx.Graph | Exception, Tracer]:
    """Run a module's forward on proxies once: the graph, or what the forward raised."""
    opaque, making, notices_random = lessons.opaque, lessons.making, lessons.notices_random
    tracer = Tracer(
        root,
        rules,
        opaque,
        inputs,
        making,
        lessons.decided,
        reading=lessons.reading,
        notices_random=notices_random,
        twice=lessons.twice,
    )
    leaves = [*ruled, *lessons.functions]
    kinds = {*_CONTEXTS, torch.set_grad_enabled}
    homes = classes_with_ways_in(root)
    try:
        with (
            UndonePatches(root, kinds | homes.keys(), leaves, lessons.outlined),
            running_outlined(lessons.outlined),
            tracer.watch,
            tracer.kept.standing_in(tracer.watch) if lessons.keeping else nullcontext(),
            torch.no_grad(),
            _noticing(tracer),
            answering_for_proxies(tracer),
            as_leaves(leaves, tracer),
            noting_ways_in(tracer, homes),
        ):
            return tracer.trace(root), tracer
    except Exception as error:  # whatever the user's forward raises on a proxy
        return error, tracer


@contextmanager
def _noticing(tracer: Tracer) -> Iterator[None]:
    """Say when this thread's code enters a context such as ``torch.autocast``; refuse some calls.

    Those add a hook, or put a value in the place of a buffer.
    """
    contexts = tracer.contexts
    places: list[tuple[Any, str, Callable[[tuple[Any, ...]], None]]] = [
        *((kind, "__enter__", lambda args: contexts.entered(args[0])) for kind in _CONTEXTS),
        *((kind, "__exit__", lambda args: contexts.left(args[0])) for kind in _CONTEXTS),
        (torch.set_grad_enabled, "__init__", lambda args: _note_mode(tracer)),
        (nn.Module, "register_forward_hook", _refuse_hook),
        (nn.Module, "register_forward_pre_hook", _refuse_hook),
        (nn.Module, "register_buffer", _refuse_buffer),
    ]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, notice in places:
        setattr(owner, name, _preceded(getattr(owner, name), notice, get_ident()))
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def _note_mode(tracer: Tracer) -> None:
    """Note that code sets whether gradients are computed; ``torch.no_grad`` does so inside."""
    asking = sys._getframe(3).f_globals.get("__name__")
    if asking != torch.no_grad.__module__:
        tracer.doubts.note_context()


def _preceded(
    original: Any, notice: Callable[[tuple[Any, ...]], None], thread: int
) -> Callable[..., Any]:
    @functools.wraps(original)
    def preceded(*args: Any, **kwargs: Any) -> Any:
        if get_ident() == thread:
            notice(args)
        return original(*args, **kwargs)

    return preceded


def _learn_from_failure(
    problem: Exception, tracer: Tracer, lessons: _Lessons, decide: Decide | None
) -> _Lessons:
    """What to leave alone after an exception: a function if possible, else the deepest module."""
    root, culprit = tracer.model, tracer.failed
    made = isinstance(problem, MadeTensorError)
    kept = tracer.kept
    if made and not lessons.keeping and (kept.in_containers(tracer.watch) or kept.in_attributes()):
        return replace(lessons, keeping=True)
    blamed = frozenset([id(culprit)])
    fresh = blamed & tracer.makers - lessons.making - lessons.given_up
    if fresh and made:
        return replace(lessons, making=lessons.making | fresh)
    outlined = with_failing_outlined(
        problem, root if culprit is None else culprit, lessons.outlined
    )
    if outlined is not None:
        return replace(lessons, outlined=outlined, decided=())  # it may ask less
    function = failing_function(problem)
    if function is not None and function not in lessons.functions:
        return replace(lessons, functions=(*lessons.functions, function))
    if blamed & lessons.making:  # it asks its tensors for numbers
        return lessons.without_making(blamed)
    question = tracer.decisions.undecided
    if decide is not None and question is not None and len(lessons.decided) < MOST_DECISIONS:
        answer = decide(tracer.calls[0].arguments, tracer.graph, question)
        if answer is not None:
            return replace(lessons, decided=(*lessons.decided, answer))
    if culprit is None or culprit is root:
        raise UntraceableError(_summary(problem))
    # Others of its class fail alike; the root's own class is tried anyway.
    kinds = {type(culprit)} - {type(root)}
    return lessons.with_leaves(blamed | kinds, root, _summary(problem))


def _learn_from_run(tracer: Tracer, lessons: _Lessons) -> _Lessons | None:
    """What to leave alone after a run that did what no graph shows; None if it did nothing."""
    root, drew = tracer.model, tracer.watch.drew
    refused = frozenset(tracer.doubts.refused)
    if refused & lessons.making:
        return lessons.without_making(refused & lessons.making)
    if refused:
        reason = tracer.doubts.refused.get(id(root), next(iter(tracer.doubts.refused.values())))
        return lessons.with_leaves(refused, root, reason)
    if rewriting := tracer.rewritten.read_before(tracer.graph, root):
        reason = "its forward puts other values into weights that it reads"
        return lessons.with_leaves(rewriting, root, reason)
    if changing := tracer.constants.that_change(root, tracer.kept.paths):
        reason = "its forward asks for numbers that a call may change"
        return lessons.with_leaves(changing, root, reason)
    if drew and not lessons.notices_random:
        return replace(lessons, drew=True)
    if drew:
        innermost = next(iter(tracer.random_modules), root)
        reason = "its forward draws random numbers while it is traced"
        return lessons.with_leaves({id(innermost)}, root, reason)
    if tracer.watch.moved:
        moved = (id(module) for module in tracer.watch.moved)
        reason = "its forward draws from a generator, or an iterator, that the model holds"
        fresh = next((key for key in moved if key not in lessons.opaque), id(root))
        return lessons.with_leaves({fresh}, root, reason)
    if tracer.writing_modules:
        reason = "its forward writes to tensors of the model"
        return lessons.with_leaves({id(tracer.writing_modules[0])}, root, reason)
    if tracer.watch.changed and not lessons.twice:
        return replace(lessons, twice=True)
    return None


def _finished(graph: fx.Graph, tracer: Tracer, path: str) -> Trace:
    """The trace of an attempt of which nothing is left to learn."""
    result = tracer.calls[0].result
    if not can_be_built(result):
        raise UntraceableError("it returns a container of a class of its own")
    for node in graph.nodes:
        tracer.caller.setdefault(node, tracer.calls[0])
    also = [node for call in tracer.calls[1:] for node in _left_unread(call, tracer.caller)]
    also += [node for nodes in tracer.put_into_objects.values() for node in nodes]
    also += [node for call in tracer.calls for node in nodes_in(call.keeps)]
    _simplify_output(graph, list(dict.fromkeys([*nodes_in(result), *also])))
    changed = {id(module) for module in tracer.watch.changed}
    operators = changed - {id(call.module) for call in tracer.calls}
    # What operators hold is changed by the code around them, and nobody knows it in the next call.
    around = {call for call in tracer.calls if _holds(call.module, operators)}
    changing = {call for call in tracer.calls if id(call.module) in changed}
    filling = _filling(tracer)
    stateful = tracer.doubts.in_context | tracer.kept.readers | changing | around | filling
    settled = {call for call in stateful if not changed or id(call.module) in tracer.settled}
    return Trace(
        tracer.model,
        path,
        graph,
        tracer.calls,
        tracer.caller,
        stateful,
        returning_early=frozenset(tracer.doubts.returning_early),
        settled=settled - tracer.doubts.in_context - around,
        kept=frozenset(tracer.kept.paths),
        ways_in=_once(tracer.ways_in),
        left_behind=tracer.left_behind,
    )


def _filling(tracer: Tracer) -> set[Call]:
    """The calls that put something into objects of their caller's that the caller does not read."""
    return {call for call in tracer.put_into_objects if not _reads_all_put(call, tracer)}


def _left_unread(call: Call, caller: Mapping[fx.Node, Call]) -> list[fx.Node]:
    """What a call computes and returns for nobody, beside what its caller reads.

    Others may read it: the caller's own code with other arguments, or a user who calls the module.
    """
    returned = list(nodes_in(call.result))
    unread = [node for node in returned if not _is_read_outside(node, call, caller)]
    if len(unread) == len(returned):
        return []
    return [node for node in unread if call in caller[node].ancestry()]


def _reads_all_put(call: Call, tracer: Tracer) -> bool:
    """Whether what a call puts into objects of its caller's is what the caller reads of them."""
    fresh = tracer.put_into_objects[call]
    return bool(fresh) and all(_is_read_outside(node, call, tracer.caller) for node in fresh)


def _is_read_outside(node: fx.Node, call: Call, caller: Mapping[fx.Node, Call]) -> bool:
    return any(call not in caller[user].ancestry() for user in node.users)


def _once(ways_in: Sequence[WayIn]) -> list[WayIn]:
    """Those that ran once: the others may need different code."""
    times = Counter((id(way.call.module), way.name) for way in ways_in)
    return [way for way in ways_in if times[id(way.call.module), way.name] == 1]


def _holds(module: nn.Module, parts: Set[int]) -> bool:
    return bool(parts) and not parts.isdisjoint(map(id, module.modules()))


def _simplify_output(graph: fx.Graph, returned: Sequence[fx.Node]) -> None:
    """Return the bare nodes: whoever writes the graph down builds the containers again."""
    output = next(iter(reversed(graph.nodes)))
    built = [node for node in output.all_input_nodes if node not in returned]
    output.args = (tuple(returned),)
    while built:
        node = built.pop()
        if not node.users:
            built.extend(operand for operand in node.all_input_nodes if operand not in returned)
            if node.op == "call_function" and isinstance(node.target, type):
                graph.erase_node(node)


def _refuse_hook(args: tuple[Any, ...]) -> None:
    raise UntraceableError("its forward registers a hook")


def _refuse_buffer(args: tuple[Any, ...]) -> None:
    if any(isinstance(value, fx.Proxy) for value in args):
        raise UntraceableError("its forward replaces a buffer")


def _summary(error: Exception) -> str:
    text = str(error).strip().split("\n", 1)[0]
    place = place_of_failure(error)
    return f"its forward cannot be traced ({place}{type(error).__name__}: {text[:160]})"
