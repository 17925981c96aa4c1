"""Expanded layers that no neighbour joins: where they are, each becomes a layer again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from torch import nn

from reparam.algebra import AffineConv
from reparam.errors import Refusal
from reparam.expansion import ExpandedLayer, collapsed
from reparam.modules import count_leaves, fetch
from reparam.planning import PlannedPart
from reparam.report import FusedRow, RefusedRow, Report


def rows_of_expanded(
    model: nn.Module, planned: Iterable[PlannedPart], kept: Collection[str]
) -> list[FusedRow]:
    """One row for each expanded layer that no region takes in, but for those that are kept."""
    taken: set[int] = set()
    for part in planned:
        root = part.part.trace.root
        for region in part.decision.regions:
            nodes = (node for link in region.path for node in link.nodes)
            taken |= {id(fetch(root, str(n.target))) for n in nodes if n.op == "call_module"}
    left = ((path, layer) for path, layer in _expanded(model) if id(layer) not in taken)
    return [_row(path, layer) for path, layer in left if path not in kept]


def collapse(
    model: nn.Module, target: nn.Module, report: Report, kept: Collection[str]
) -> dict[str, AffineConv]:
    """Put a layer in the place of each expanded one that is left, but for those that are kept.

    Args:
        model: The model that is fused, whose parameters the forms are of.
        target: The same, or the copy of it that changes.
        report: Where it is taken down.
        kept: Paths of the modules that stay as they are.

    Returns:
        The forms of these layers, by their paths.
    """
    made: dict[int, tuple[nn.Module, AffineConv] | Refusal] = {}
    forms: dict[str, AffineConv] = {}
    for path, layer in [(path, layer) for path, layer in _expanded(target) if path not in kept]:
        if _kinds(layer) != _kinds(fetch(model, path)):
            continue  # its branches were fused one by one, since one of them has a hook
        plain = made.setdefault(id(layer), collapsed(fetch(model, path)))
        if isinstance(plain, Refusal):
            report.refused.append(RefusedRow(path, "ExpandedLayer", plain.reason))
            continue
        holder, _, name = path.rpartition(".")
        fetch(target, holder)._modules[name], forms[path] = plain
        report.refused[:] = [row for row in report.refused if row.place != path]
        report.fused.append(_row(path, layer, name=path))
    return forms


def _expanded(model: nn.Module) -> Iterator[tuple[str, ExpandedLayer]]:
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, ExpandedLayer) and path:
            yield path, module


def _kinds(layer: nn.Module) -> list[tuple[str, type]]:
    return [(path, type(part)) for path, part in layer.named_modules()]


def _row(path: str, layer: ExpandedLayer, name: str = "") -> FusedRow:
    plain: Any = layer.main_layer
    kernel = plain.weight.numel()
    return FusedRow(
        path,
        "ExpandedLayer",
        type(plain).__name__,
        (kernel, kernel),
        (count_leaves(layer), 1),
        name=name,
    )
