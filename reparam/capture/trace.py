"""Which code made which nodes: the calls of modules that were traced through."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any

from torch import fx, nn

from reparam.capture.reading import Onlookers
from reparam.modules import fetch, read_from


@dataclass(eq=False)
class Call:
    """One call of a module that was traced through.

    Args:
        path: Where the module is registered in the root.
        module: The module.
        parent: The call whose forward made this call; None for the root.
        arguments: What every parameter of the module's forward was given.
        args: The positional arguments as the caller wrote them.
        kwargs: The keyword arguments as the caller wrote them.
        optional: Whether the forward has parameters that a caller may leave out.
        tensors: What was taken for a tensor because the code asks what it is: a parameter, and the
            keys by which it is in what that is given.
        lengths: How many values a parameter has to hold at least, since the code takes as many.
        typed: Weights, by path, whose type was taken for the type of a value.
        asked: Weights, by path, whose numbers decided which way the code went, or what it holds.
        handed: Those that decided so what a part returned: a number, or no value of its own.
        recomputed: Whether checkpointing made it, and may make it again from its arguments.
        decided: Whether example inputs decided which way the code goes.
        keeps: Attributes that every run of the forward sets: names and values of the graph.
        result: What the forward returned, nodes in place of proxies.
    """

    path: str
    module: nn.Module
    parent: Call | None
    arguments: dict[str, Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    optional: bool = False
    recomputed: bool = False
    tensors: set[tuple[Any, ...]] = field(default_factory=set)
    lengths: dict[str, int] = field(default_factory=dict)
    typed: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    handed: set[str] = field(default_factory=set)
    decided: bool = False
    keeps: dict[str, Any] = field(default_factory=dict)
    result: Any = None

    @property
    def deciding(self) -> set[str]:
        """Weights, by path, whose numbers decided what the code does or returns."""
        return self.asked | self.handed

    def ancestry(self) -> Iterator[Call]:
        """This call, its caller, and so on up to the root."""
        call: Call | None = self
        while call is not None:
            yield call
            call = call.parent


@dataclass(frozen=True, eq=False)
class WayIn:
    """A public method besides ``forward``, which the forward of its module called once.

    Args:
        name: The method's name.
        owner: The call whose forward called it.
        call: What the method was given and what it returned.
        nodes: What it computed.
    """

    name: str
    owner: Call
    call: Call
    nodes: tuple[fx.Node, ...]


@dataclass(eq=False)
class Trace:
    """The traced graph of one module.

    Args:
        root: The module, as it was.
        path: Where the root is registered in the user's model.
        graph: The flat graph; its nodes name modules and tensors by their path in the root.
        calls: The root's own call and every call that was traced through, in order.
        caller: For each node the innermost call that made it.
        stateful: Calls of modules whose code must stay: it changes the module, or enters a context
            such as ``torch.no_grad``, or reads what is kept of earlier calls.
        returning_early: Calls of modules whose forward may end early: their code stays theirs.
        settled: Those of them whose code does the same to its inputs in every call.
        kept: Attributes, by path, that hold what is kept of earlier calls.
        ways_in: Public methods besides ``forward`` that a user may call, too, as they ran.
        left_behind: Attributes in which every run leaves the same: their modules, names and values.
        unchanged: Identities of the modules that the user wants to stay as they are.
        by_methods: For each module, by identity, the methods other than ``forward`` that call it:
            the identity of their module, and their name.
    """

    root: nn.Module
    path: str
    graph: fx.Graph
    calls: list[Call]
    caller: dict[fx.Node, Call]
    stateful: set[Call]
    returning_early: Collection[Call] = frozenset()
    settled: Collection[Call] = frozenset()
    kept: Collection[str] = frozenset()
    ways_in: Sequence[WayIn] = ()
    left_behind: Sequence[tuple[nn.Module, str, Any]] = ()
    unchanged: Collection[int] = frozenset()
    by_methods: Mapping[int, Collection[tuple[int, str]]] = field(default_factory=dict)

    @cached_property
    def onlookers(self) -> Onlookers:
        """What the code that was traced asks of the modules that it runs."""
        return Onlookers(call.module for call in self.calls)

    def is_unchanged(self, node: fx.Node) -> bool:
        """Whether an operator is one, or in the code of one, or uses a tensor of one, of these."""
        if not self.unchanged:
            return False
        named = node.op == "call_module" and id(fetch(self.root, str(node.target)))
        read = {
            id(read_from(self.root, str(operand.target)))
            for operand in node.all_input_nodes
            if operand.op == "get_attr"
        }
        around = {id(call.module) for call in self.caller[node].ancestry()}
        return not {named, *read, *around}.isdisjoint(self.unchanged)


def bound(
    forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """What each parameter of a forward is given, defaults included."""
    arguments = inspect.signature(forward).bind(*args, **kwargs)
    arguments.apply_defaults()
    return dict(arguments.arguments)


def has_options(forward: Callable[..., Any]) -> bool:
    """Whether a function has parameters that a caller may leave out, or a wrapper around it has."""
    signatures = (inspect.signature(forward, follow_wrapped=follow) for follow in (True, False))
    parameters = (p for signature in signatures for p in signature.parameters.values())
    return any(parameter.default is not parameter.empty for parameter in parameters)


def surely_given(forward: Callable[..., Any]) -> dict[str, Any]:
    """The first parameter, where all may be left out: with none at all there is nothing to do.

    What it is given is not known: `inspect.Parameter.empty` stands for that.
    """
    parameters = inspect.signature(forward).parameters.values()
    named = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    unknown = inspect.Parameter.empty
    if named:
        return {named[0].name: unknown} if all(p.default is not unknown for p in named) else {}
    return {p.name: (unknown,) for p in parameters if p.kind is p.VAR_POSITIONAL}


def knows_only_tensors(call: Call) -> bool:
    """Whether a call runs the same code whatever its arguments: each is a value of the graph."""
    assumes = call.optional or call.tensors or call.lengths or call.typed
    return not assumes and all(isinstance(value, fx.Node) for value in call.arguments.values())


def may_run_otherwise(call: Call) -> bool:
    """Whether a call's code may go another way than it was traced, if it stays as it is."""
    return not knows_only_tensors(call) or bool(call.deciding)


def common_caller(callers: Iterable[Call]) -> Call:
    """The innermost call that all of the calls were made in."""
    iterator = iter(callers)
    common = list(next(iterator).ancestry())[::-1]
    for call in iterator:
        ancestry = list(call.ancestry())[::-1]
        pairs = takewhile(lambda pair: pair[0] is pair[1], zip(common, ancestry, strict=False))
        common = [shared for shared, _ in pairs]
    return common[-1]


def calls_between(inner: Call, outer: Call) -> Iterator[Call]:
    """A call and its callers up to one of them, which is left out."""
    return takewhile(lambda call: call is not outer, inner.ancestry())
