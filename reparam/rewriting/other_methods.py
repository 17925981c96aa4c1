"""New code for the public methods that a forward calls, so that all ways into a model agree."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress

from reparam.capture import Call, Trace, WayIn, knows_only_tensors
from reparam.capture.reading import CallSites, names_used_by, own_methods
from reparam.rewriting.new_code import GraftError, NewCode, Slicer


def methods_with_new_code(
    trace: Trace, slicer: Slicer, owners: Collection[Call]
) -> Iterator[tuple[WayIn, NewCode]]:
    """The methods of some modules whose new code computes the same with the same operators."""
    for way in trace.ways_in:
        call = way.owner
        asks = call.tensors or call.lengths or call.typed
        if call in owners and not asks and way.name not in vars(call.module):
            with suppress(GraftError):
                yield way, NewCode(slicer, call, way)


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
    used = names_used_by(type(module), others, {"forward", *new})
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
