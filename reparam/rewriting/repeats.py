"""A block that is called several times: which of its calls, and regions, are the same."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from itertools import chain
from typing import Any

from torch import fx, nn

from reparam.analysis import Facts
from reparam.capture import Call, Trace, nodes_in, reached
from reparam.modules import fetch
from reparam.planning import Region


def signature(region: Region, facts: Facts) -> Hashable | None:
    """What two regions have in common if one operator serves both; None if none can.

    They run the same operators on the same modules and parameters in the same order.
    """
    values = (region.value, *(absorbed.term for absorbed in region.absorbed))
    reshaped = [absorbed.rows for absorbed in region.absorbed if absorbed.rows is not None]
    bases = dict.fromkeys([region.base, *(term.base for term in reshaped)])
    names = {base: number for number, base in enumerate(bases)}
    rows = _rows(values, names, facts)
    if rows is None:
        return None
    rows.extend((term.shape, term.times) for term in reshaped)
    rows.append(tuple(type(adjustment) for adjustment in region.adjustments))
    rows.append(region.multiple and region.multiple.times)
    for share in region.shares:
        scale = _rows((share.link.value,), {share.link.base: 0}, facts) or ()
        rows.append((share.channels, share.total, share.shifts, *scale))
    for gathered in region.gathered:
        link = gathered.link
        scale = _rows((link.value,), {link.base: 0}, facts) or ()
        rows.append((gathered.channels, *scale))
    if region.folded is not None:
        value, base = region.folded.value, region.folded.base
        norm = _rows((value,), {base: 0}, facts)
        if norm is None:
            return None
        rows.append((region.norm is None, *norm))
    form, like = region.form, region.form.like
    shape = form.axes, form.in_channels, form.out_channels, form.groups, form.dtype, id(like)
    return _hashable((*rows, *(names[value] for value in values), shape, region.converts))


def _rows(
    values: tuple[fx.Node, ...], names: dict[fx.Node, int], facts: Facts
) -> list[Hashable] | None:
    """The operators to some values from those that have a number; they get numbers, too."""
    rows: list[Hashable] = []
    bases = frozenset(names)
    above = reached(values, lambda node: () if node in bases else node.all_input_nodes)
    for node in sorted(above - bases, key=facts.order.__getitem__):
        if node.op in ("placeholder", "output"):
            return None  # it reads something from outside, a size for example
        names[node] = len(names)
        rows.append(_row(node, names, facts.root))
    return rows


def _row(node: fx.Node, names: dict[fx.Node, int], root: nn.Module) -> Hashable:
    """What one node runs, with numbers in place of nodes."""
    module = node.op == "call_module"
    target: Any = id(fetch(root, str(node.target))) if module else node.target
    return node.op, target, _written(node.args, names), _written(node.kwargs, names)


def edited_alike(
    trace: Trace, operators: Iterable[tuple[Region, nn.Module]], idle: set[fx.Node]
) -> set[int]:
    """Identities of the modules that are called several times and edited the same each time.

    Their code can change where it is, once for all calls: each call runs the same operators on its
    arguments, and the same regions lie in each, become the same new operators, and end inside.
    Calls of nothing but idle nodes, which no code has to compute, may run any code.
    """
    repeated = repeated_calls(trace)
    inside: dict[Call, list[fx.Node]] = {call: [] for call in repeated}
    within: dict[Call, list[tuple[Region, nn.Module]]] = {call: [] for call in repeated}
    for node in trace.graph.nodes:
        for call in repeated.intersection(trace.caller[node].ancestry()):
            inside[call].append(node)
    for region, module in operators:
        callers = {trace.caller[node] for node in _edited(region) if node.op != "get_attr"}
        for call in repeated.intersection(chain.from_iterable(map(Call.ancestry, callers))):
            within[call].append((region, module))
    outlines: dict[int, set[Hashable]] = defaultdict(set)
    for call in repeated:
        if not idle.issuperset(inside[call]):
            outlines[id(call.module)].add(_outline(trace, call, inside[call], within[call]))
    return {key for key, codes in outlines.items() if len(codes) == 1 and None not in codes}


def repeated_calls(trace: Trace) -> set[Call]:
    """The calls of modules that are called several times."""
    times = Counter(id(call.module) for call in trace.calls)
    return {call for call in trace.calls if times[id(call.module)] > 1}


def graph_outline(graph: fx.Graph) -> Hashable:
    """What a graph computes, with numbers in place of nodes."""
    names = {node: number for number, node in enumerate(graph.nodes)}
    return tuple(
        (node.op, node.target, _written(node.args, names), _written(node.kwargs, names))
        if node.op != "placeholder"
        else node.op
        for node in graph.nodes
    )


def _edited(region: Region) -> set[fx.Node]:
    """The nodes that go or change for a region."""
    return {*region.dying, region.value, *(absorbed.total for absorbed in region.absorbed)}


def _outline(
    trace: Trace, call: Call, inside: list[fx.Node], within: list[tuple[Region, nn.Module]]
) -> Hashable | None:
    """What a call runs and what of it changes, with numbers in place of nodes.

    None if that depends on more than the call's arguments.
    """
    names = {node: number for number, node in enumerate(nodes_in(call.arguments))}
    weights = frozenset(call.typed), frozenset(call.deciding)
    asked = frozenset(call.tensors), weights, frozenset(call.lengths.items())
    rows: list[Hashable] = [call.optional, asked, _written(call.arguments, names)]
    for node in inside:
        constants = [feed for feed in node.all_input_nodes if feed not in names]
        if node.op == "placeholder" or any(feed.op != "get_attr" for feed in constants):
            return None
        names.update((feed, len(names)) for feed in constants)
        rows.extend(("get_attr", feed.target) for feed in constants)
        rows.append(_row(node, names, trace.root))
        names.setdefault(node, len(names))
    rows.append(_written(call.result, names))
    own = set(inside)
    for region, module in within:
        edited = _edited(region)
        if region.base not in names or any(
            node not in own and node.op != "get_attr" for node in edited
        ):
            return None
        path = tuple(names.get(link.value) for link in region.path)
        gone = frozenset(names[node] for node in edited if node in names)
        ends = names[region.base], names[region.value], names.get(region.main.value)
        rows.append((*ends, path, gone, id(module)))
    return _hashable(tuple(rows))


def _hashable(rows: tuple[Hashable, ...]) -> Hashable | None:
    """Some rows; None if one holds a constant that cannot be compared with another's."""
    try:
        hash(rows)
    except TypeError:
        return None
    return rows


def _written(argument: Any, names: dict[fx.Node, int]) -> Hashable:
    """An argument with numbers in place of nodes, made of tuples."""
    if isinstance(argument, fx.Node):
        return "node", names.get(argument, argument)
    if isinstance(argument, tuple | list):
        return tuple(_written(entry, names) for entry in argument)
    if isinstance(argument, dict):
        return tuple((key, _written(value, names)) for key, value in argument.items())
    if isinstance(argument, slice):
        entries = argument.start, argument.stop, argument.step
        return "slice", *(_written(entry, names) for entry in entries)
    result: Hashable = type(argument), argument
    return result
