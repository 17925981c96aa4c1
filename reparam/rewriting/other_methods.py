"""New code for the public methods that a forward calls, so that all ways into a model agree."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import fx

from reparam.capture import Built, Call, Trace, WayIn, knows_only_tensors
from reparam.capture.reading import (
    CallSites,
    hands_itself_on,
    methods_run_by,
    names_of_properties,
    names_used_by,
    own_methods,
)
from reparam.rewriting.new_code import GraftError, NewCode, Slicer


def methods_with_new_code(
    trace: Trace, slicer: Slicer, owners: Collection[Call]
) -> Iterator[tuple[WayIn, NewCode]]:
    """The methods of some modules whose new code computes the same with the same operators."""
    for way in trace.ways_in:
        call = way.owner
        asks = call.tensors or call.lengths or call.typed or call.deciding
        if call in owners and not asks and way.name not in vars(call.module) and _can_be_told(way):
            with suppress(GraftError):
                yield way, NewCode(slicer, call, way)


def needs_new_code(way: WayIn, slicer: Slicer) -> bool:
    """Whether something that a method computes is gone; one that only prints, say, stays."""
    nodes = {slicer.rewrite.copy(node) for node in way.nodes if node.op != "get_attr"}
    return not nodes.issubset(slicer.inside[way.owner])


def _can_be_told(way: WayIn) -> bool:
    """Whether new code can return what a method does, and keep what it was given."""
    return all(map(_is_plain, (way.call.result, *way.call.arguments.values())))


def _is_plain(value: Any) -> bool:
    """Whether a structure holds only values of the graph, and constants that compare."""
    match value:
        case Built():
            return _is_plain(value.entries)
        case tuple() | list():
            return all(map(_is_plain, value))
        case dict():
            return all(map(_is_plain, value.values()))
    return value is None or isinstance(value, fx.Node | bool | int | float | str | torch.dtype)


def released(trace: Trace, ways: Collection[WayIn]) -> dict[Call, set[str]]:
    """The parts that no other method runs than those with new code, by the call of the forward."""
    # With other arguments a method runs as it was.
    sure = [way for way in ways if knows_only_tensors(way.call)]
    return {
        owner: _released(trace, owner, {way.name for way in sure if way.owner is owner})
        for owner in {way.owner for way in sure}
    }


def _released(trace: Trace, owner: Call, new: set[str]) -> set[str]:
    module = owner.module
    sites, methods = CallSites(module), own_methods(type(module))
    others = [
        name
        for name, method in methods.items()
        if name not in {"forward", *new}
        and (not name.startswith("_") or name.endswith("__"))
        and sites.may_call(method, module)
    ]
    kind, without = type(module), {"forward", *new}
    used = names_used_by(kind, others, without) | names_of_properties(kind)
    # Code of a base class, or of this one by its name, runs methods as they were.
    freely = [m for m in methods_run_by(kind, others, without) if hands_itself_on(module, m)]
    used |= names_used_by(kind, freely, ())
    return {
        name
        for name, part in module.named_children()
        if name not in used
        and all(
            holder == id(module)
            for inner in part.modules()
            for holder, _ in trace.by_methods.get(id(inner), ())
        )
    }
