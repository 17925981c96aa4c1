"""Which layers must stay, since code does something else when they are expanded.

An expanded layer is no instance of torch's class, so code that asks `isinstance(self.conv,
nn.Conv2d)` takes another way. The model's graphs tell: they have to be what they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import fx, nn
from torch.utils._pytree import tree_map

from reparam.analysis import Part, Untraced, find_parts
from reparam.expansion.expanded_layers import ExpandedLayer
from reparam.rules import Rules

Parts = tuple[list[Part], list[Untraced]]


def parts_of(model: nn.Module) -> Parts:
    """What of a model can be traced, and what cannot."""
    return find_parts(model, Rules(), None)


def graphs(parts: Parts) -> list[Any]:
    """What the code of a model does, as values that can be compared."""
    traced, untraced = parts
    told: list[Any] = [(stays.path, stays.reason) for stays in untraced]
    for part in traced:
        told += [(part.trace.path, *_node(node)) for node in part.trace.graph.nodes]
    return told


def _node(node: fx.Node) -> tuple[Any, ...]:
    arguments = tree_map(_argument, (node.args, dict(node.kwargs)))
    return node.op, getattr(node.target, "__name__", node.target), arguments


def _argument(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return value.name
    return value if isinstance(value, bool | int | float | str | None) else type(value)


def noticed(
    model: nn.Module, layers: Mapping[str, tuple[nn.Module, ExpandedLayer]], before: list[Any]
) -> set[str]:
    """The layers that code treats otherwise once they are expanded; these are put back.

    Args:
        model: The model with all layers expanded.
        layers: Each layer, and what it was expanded to, by path.
        before: The graphs of the model as it was.
    """
    odd: set[str] = set()
    pending = [list(layers)]
    while pending:
        group = pending.pop()
        _put(model, layers, group)
        if not group or graphs(parts_of(model)) == before:
            continue
        if len(group) == 1:
            odd.update(group)
            continue
        half = len(group) // 2
        pending += [group[:half], group[half:]]
    _put(model, layers, set(layers) - odd)
    return odd


def _put(
    model: nn.Module,
    layers: Mapping[str, tuple[nn.Module, ExpandedLayer]],
    expanded: Iterable[str],
) -> None:
    """Let some of the layers be expanded, and the others what they were."""
    paths = set(expanded)
    for path, pair in layers.items():
        holder, _, name = path.rpartition(".")
        setattr(model.get_submodule(holder), name, pair[path in paths])
