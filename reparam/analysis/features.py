"""Values that are taken to be rows of features: what a batch norm next to a linear layer gets.

The norm takes values of two axes or of three, and the layer any number. That both get features,
each row one vector, is what almost everybody means; a fused model checks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from reparam.analysis.ranks import keeps_shape
from reparam.capture import Trait, torch_name, traits
from reparam.modules import layer_at, read_from

_ROWS = 2

_PRODUCTS = ("matmul", "mm", "addmm")

Shapes = Mapping[fx.Node, torch.Size]


def rows_of_features(
    nodes: Sequence[fx.Node], root: nn.Module, ranks: Mapping[fx.Node, int], constants: Shapes
) -> dict[fx.Node, int]:
    """The number of axes of what batch norms get, where only a linear layer next to them tells.

    Of the constants it takes the shapes.
    """
    rows: dict[fx.Node, int] = {}
    for node in nodes:
        operand = node.args[0] if node.args else None
        if not isinstance(operand, fx.Node) or operand in ranks:
            continue
        channels = _channels(node, root, constants)
        if channels is not None and channels in _features(node, operand, root, constants):
            rows[operand] = _ROWS
    return rows


def _channels(node: fx.Node, root: nn.Module, constants: Shapes) -> int | None:
    """How many channels a batch norm counts along the second axis; None for other operators."""
    if node.op == "call_module":
        module = layer_at(root, str(node.target))
        return module.num_features if isinstance(module, nn.BatchNorm1d) else None
    if torch_name(node) != "batch_norm":
        return None
    # A function may normalise anything: what its statistics belong to tells.
    held = [argument for argument in node.all_input_nodes if argument.op == "get_attr"]
    holders = {type(read_from(root, str(argument.target))) for argument in held}
    sizes = _sizes(node, root, constants)
    return sizes[0] if sizes and holders <= {nn.BatchNorm1d} else None


def _features(norm: fx.Node, operand: fx.Node, root: nn.Module, constants: Shapes) -> set[int]:
    """How many features linear layers give to a norm, or take from it."""
    before = _nearest(operand, root, lambda node: node.all_input_nodes)
    after = {
        layer for reader in norm.users for layer in _nearest(reader, root, lambda node: node.users)
    }
    given = {sizes[0] for layer in before if (sizes := _sizes(layer, root, constants))}
    return given | {sizes[1] for layer in after if len(sizes := _sizes(layer, root, constants)) > 1}


def _nearest(
    node: fx.Node, root: nn.Module, beyond: Callable[[fx.Node], Iterable[fx.Node]]
) -> set[fx.Node]:
    """The first linear layers from a node on, past operators that keep the shape of a value."""
    layers: set[fx.Node] = set()
    pending, seen = [node], set[fx.Node]()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if _is_linear(node, root):
            layers.add(node)
        elif Trait.BROADCASTS in traits(node) or keeps_shape(node, root):
            pending.extend(beyond(node))
    return layers


def _is_linear(node: fx.Node, root: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(layer_at(root, str(node.target)), nn.Linear)
    return torch_name(node) in ("linear", *_PRODUCTS)


def _sizes(node: fx.Node, root: nn.Module, constants: Shapes) -> tuple[int, ...]:
    """The sizes of an operator's first parameter: of a linear layer, features out and in."""
    if node.op == "call_module":
        layer: Any = layer_at(root, str(node.target))
        return tuple(layer.weight.shape)
    if torch_name(node) in _PRODUCTS:  # by a matrix of features in and out
        matrix = constants.get(node.args[-1], ()) if isinstance(node.args[-1], fx.Node) else ()
        return tuple(reversed(matrix)) if len(matrix) == _ROWS else ()
    held = [constants[argument] for argument in node.all_input_nodes if argument in constants]
    return tuple(held[0]) if held else ()
