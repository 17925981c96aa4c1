"""The number of axes of each value of a graph, inferred forwards and backwards."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile

from torch import fx, nn

from reparam.analysis.rank_laws import Axes, is_activation, rank_facts, reduction, regrouped
from reparam.capture import Trait, torch_name, traits
from reparam.modules import fetch


def keeps_shape(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node's value surely has the shape of its operand: activations and the like."""
    if node.op == "call_module":
        module = fetch(root, str(node.target))
        return is_activation(module) or type(module).__name__.startswith(("Dropout", "LayerNorm"))
    return Trait.KEEPS_SHAPE in traits(node)


def keeps_type(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node's value is of a floating-point type if an operand is."""
    if node.op == "call_module":
        name = type(fetch(root, str(node.target))).__name__
        return keeps_shape(node, root) or name.startswith(
            ("MaxPool", "Flatten", "Unflatten", "Identity", "Upsampl", "PixelShuffle")
        )
    return Trait.KEEPS_TYPE in traits(node)


def find_axes(
    nodes: Sequence[fx.Node], root: nn.Module, known: Mapping[fx.Node, int]
) -> tuple[dict[fx.Node, int], dict[fx.Node, int]]:
    """The number of axes of each value, and how many of its last axes have size 1, where known."""
    ranks = find_ranks(nodes, root, known, {})
    while True:
        ones = find_trailing_ones(nodes, root, ranks)
        more = find_ranks(nodes, root, ranks, ones) if ones else ranks
        if len(more) == len(ranks):
            return ranks, ones
        ranks = more


def find_ranks(
    nodes: Sequence[fx.Node],
    root: nn.Module,
    known: Mapping[fx.Node, int],
    ones: Mapping[fx.Node, int],
) -> dict[fx.Node, int]:
    """Infer ranks until nothing new is learned."""
    ranks = dict(known)
    if len(ranks) >= len(nodes) - 1:
        return ranks
    axes = Axes(root, ranks, ones)
    changed = True
    while changed:
        changed = False
        for direction in (nodes, reversed(nodes)):
            for node in direction:
                for value, rank in rank_facts(node, axes):
                    if value not in ranks:
                        ranks[value] = rank
                        changed = True
    return ranks


def find_trailing_ones(
    nodes: Sequence[fx.Node], root: nn.Module, ranks: Mapping[fx.Node, int]
) -> dict[fx.Node, int]:
    """How many of the last axes of a value are known to have size 1: those of a global pool."""
    ones: dict[fx.Node, int] = {}
    for node in nodes:
        operand = node.args[0] if node.args else None
        if not isinstance(operand, fx.Node):
            continue
        rank = ranks.get(operand)
        count = _pooled_axes(node, root, rank)
        if count == 0 and operand in ones and _keeps_ones(node, root):
            count = ones[operand]
        elif rank is not None and (axes := regrouped(node, rank, ones.get(operand, 0))):
            count = len(list(takewhile(bool, reversed(axes))))
        if count:
            ones[node] = count
    return ones


def _keeps_ones(node: fx.Node, root: nn.Module) -> bool:
    """Whether axes of size 1 after the channels surely stay so."""
    if node.op != "call_module":
        return keeps_shape(node, root)
    module = fetch(root, str(node.target))
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        taps = {*module.kernel_size, *module.dilation}
        return taps == {1} and module.padding in (0, (0,) * len(module.kernel_size), "valid")
    batch_norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Identity)
    return isinstance(module, batch_norms) or keeps_shape(node, root)


def _pooled_axes(node: fx.Node, root: nn.Module, rank: int | None) -> int:
    """How many last axes a node averages over and keeps with size 1."""
    name, size = torch_name(node), node.args[1] if len(node.args) > 1 else None
    if node.op == "call_module":
        module = fetch(root, str(node.target))
        name, size = type(module).__name__, getattr(module, "output_size", None)
    pool = re.match(r"(?:AdaptiveAvgPool|adaptive_avg_pool)([123])d$", name)
    if pool:
        sizes = size if isinstance(size, tuple | list) else (size,)
        return int(pool[1]) if all(entry == 1 for entry in sizes) else 0
    if name == "mean" and rank is not None:
        dims, keep = reduction(node)
        axes = dims if isinstance(dims, tuple | list) else (dims,)
        if keep is True and all(isinstance(axis, int) for axis in axes):
            positions = {int(str(axis)) % rank for axis in axes}
            if positions == set(range(rank - len(positions), rank)):
                return len(positions)
    return 0
