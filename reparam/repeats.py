"""Regions that are the same operator on another value: a block that is called several times."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import fx

from reparam.facts import Facts
from reparam.modules import fetch
from reparam.regions import Region


def signature(region: Region, facts: Facts) -> Hashable | None:
    """What two regions have in common if one operator serves both; None if none can.

    They run the same operators on the same modules and parameters in the same order.

    Args:
        region: The region.
        facts: What is known of its graph.
    """
    values = (region.value, *(absorbed.term for absorbed in region.absorbed))
    nodes = _above(values, region.base)
    names: dict[fx.Node, int] = {region.base: 0}
    rows: list[Hashable] = []
    for node in sorted(nodes, key=facts.order.__getitem__):
        if node.op in ("placeholder", "output"):
            return None  # it reads something from outside, a size for example
        names[node] = len(names)
        target: Any = node.target
        if node.op == "call_module":
            target = id(fetch(facts.root, str(target)))
        rows.append((node.op, target, _written(node.args, names), _written(node.kwargs, names)))
    form, like = region.form, region.form.like
    shape = form.axes, form.in_channels, form.out_channels, form.groups, form.dtype, id(like)
    whole = tuple(rows), tuple(names[value] for value in values), shape, region.converts
    try:
        hash(whole)
    except TypeError:
        return None
    return whole


def _above(values: tuple[fx.Node, ...], base: fx.Node) -> set[fx.Node]:
    """All that some values depend on, up to a base."""
    found: set[fx.Node] = set()
    pending = [*values]
    while pending:
        node = pending.pop()
        if node is not base and node not in found:
            found.add(node)
            pending.extend(node.all_input_nodes)
    return found


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
