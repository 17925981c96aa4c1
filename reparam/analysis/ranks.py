"""The number of axes of each value of a graph, inferred forwards and backwards."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from math import inf
from typing import Any

from torch import fx, nn

from reparam.capture import Trait, checked_axes, torch_name, traits, traits_of
from reparam.modules import layer_at, read_from
from reparam.rules import rank_of, terms_of, unpacked

_KEEPING_MODULES = (
    nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.Identity, nn.Dropout, nn.Softmax,
    nn.SyncBatchNorm,
)  # fmt: skip

_SHAPED = ("Dropout", "LayerNorm", "GroupNorm", "RMSNorm")
"""How the names of modules begin whose values have the shape of their operands."""

_MATRIX = 2

_Facts = list[tuple[fx.Node, int]]


@dataclass(frozen=True)
class _Axes:
    """What is known of axes so far.

    Args:
        root: The module that the nodes' paths refer to.
        ranks: The number of axes of each value, where known.
        ones: How many of its last axes have size 1, where known.
        certain: Whether nothing is taken for granted.
    """

    root: nn.Module
    ranks: Mapping[fx.Node, int]
    ones: Mapping[fx.Node, int]
    certain: bool = False


def keeps_shape(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node's value surely has the shape of its operand: activations and the like."""
    if node.op == "call_module":
        module = layer_at(root, str(node.target))
        return _is_activation(module) or type(module).__name__.startswith(_SHAPED)
    return Trait.KEEPS_SHAPE in traits(node)


_POOL = re.compile("(?:adaptive_?|fractional_?)?(?:avg|max|lp)_?pool([123])d", re.IGNORECASE)


def pooled_axes(node: fx.Node, root: nn.Module) -> float:
    """How many last axes a pool pools over, and leaves those before alone; of others infinity."""
    module = layer_at(root, str(node.target)) if node.op == "call_module" else None
    pool = _POOL.fullmatch(torch_name(node) if module is None else _torch_name(module))
    return int(pool[1]) if pool else inf


def find_axes(
    nodes: Sequence[fx.Node], root: nn.Module, known: Mapping[fx.Node, int]
) -> tuple[dict[fx.Node, int], dict[fx.Node, int]]:
    """The number of axes of each value, and how many of its last axes have size 1, where known.

    Where the code allows others, it is taken that operators over spatial axes get a batch.
    """
    ranks = _find_ranks(nodes, _Axes(root, known, {}))
    while True:
        ones = _find_trailing_ones(nodes, root, ranks)
        more = _find_ranks(nodes, _Axes(root, ranks, ones)) if ones else ranks
        if len(more) == len(ranks):
            return ranks, ones
        ranks = more


def certain_ranks(
    nodes: Sequence[fx.Node], root: nn.Module, known: Mapping[fx.Node, int]
) -> dict[fx.Node, int]:
    """The number of axes of each value for which the code allows no other."""
    return _find_ranks(nodes, _Axes(root, known, {}, certain=True))


def _find_ranks(nodes: Sequence[fx.Node], known: _Axes) -> dict[fx.Node, int]:
    """Infer ranks until nothing new is learned."""
    ranks = dict(known.ranks)
    if len(ranks) >= len(nodes) - 1:
        return ranks
    axes = replace(known, ranks=ranks)
    changed = True
    while changed:
        changed = False
        # A node tells only of its own value and its operands.
        telling = [n for n in nodes if n not in ranks or not ranks.keys() >= {*n.all_input_nodes}]
        for direction in (telling, reversed(telling)):
            for node in direction:
                for value, rank in _rank_facts(node, axes):
                    if value not in ranks:
                        ranks[value] = rank
                        changed = True
    return ranks


# -- What a node tells of ranks --------------------------------------------------------------------


def _rank_facts(node: fx.Node, axes: _Axes) -> _Facts:
    """What a node tells of the ranks of its own value and of its operand's."""
    name = torch_name(node)
    operand = node.args[0] if node.args else node.kwargs.get("input")
    if node.target is checked_axes and node.args[1]:
        return [(node, int(str(node.args[1]))), (node.all_input_nodes[0], int(str(node.args[1])))]
    if name == "einsum":
        return _named_by_equation(node)
    if name in ("cat", "stack"):
        return _joined(node, name, axes.ranks)
    if Trait.BROADCASTS in traits_of(name):
        return _broadcast(node, axes)
    if not isinstance(operand, fx.Node):
        return []
    if "length" in node.meta and (name == "size" or node.args[1:] == ("shape",)):
        return [(operand, int(node.meta["length"]))]
    module = layer_at(axes.root, str(node.target)) if node.op == "call_module" else None
    if module is not None:
        name = _torch_name(module)
    if axes.certain and _takes_no_batch(name):
        return _equal(node, operand, axes.ranks)
    rank = _rank_of_both(node, name, axes)
    if rank is not None:
        return [(node, rank), (operand, rank)]
    return _rank_of_either(node, name, operand, module, axes)


def _rank_of_either(
    node: fx.Node, name: str, operand: fx.Node, module: nn.Module | None, axes: _Axes
) -> _Facts:
    """What an operator tells of its value by its operand, or of its operand by its value."""
    other = _argument(node, 1)
    if name == "matmul" and isinstance(other, fx.Node) and axes.ranks.get(other) == _MATRIX:
        return _equal(node, operand, axes.ranks)  # row by row
    like = _of_equal_rank(node, name, operand, module)
    if like is not None:
        return _equal(node, like, axes.ranks)
    if node in axes.ranks:
        rank = _rank_of_operand(node, name, axes.ranks[node])
        return [] if rank is None else [(operand, rank)]
    rank = _rank_of_value(node, name, axes.ranks.get(operand), axes.ones.get(operand, 0), module)
    return [] if rank is None else [(node, rank)]


_SPATIAL = re.compile(
    "(?!batchnorm1d)(?:conv|conv_?transpose|(?:adaptive_?)?(?:avg|max)_?pool|batchnorm|instancenorm)"
    "([123])d"
)
"""Operators over n spatial axes are taken to get a batch: rank n + 2."""


def _takes_no_batch(name: str) -> bool:
    """Whether an operator over spatial axes also takes a value without a batch."""
    spatial = _SPATIAL.fullmatch(name.lower())
    return spatial is not None and not name.lower().startswith("batchnorm")


def _named_by_equation(node: fx.Node) -> _Facts:
    """An equation names every axis of its operands and of its result."""
    parsed = terms_of(node.args[0] if node.args else None)
    operands = unpacked(node.args[1:])
    if parsed is None or len(parsed[0]) != len(operands):
        return []
    named = [(node, rank_of(parsed[1])), *zip(operands, map(rank_of, parsed[0]), strict=True)]
    return [(value, rank) for value, rank in named if isinstance(value, fx.Node) and rank]


def _joined(node: fx.Node, name: str, ranks: Mapping[fx.Node, int]) -> _Facts:
    """Values side by side; a stack has one more axis."""
    several = node.args[0] if node.args else None
    if not isinstance(several, tuple | list):
        return []
    new = name == "stack"
    values = [value for value in several if isinstance(value, fx.Node)]
    parts = [ranks[value] for value in values if value in ranks]
    if node in ranks:
        return [(value, ranks[node] - new) for value in values]
    return [(node, parts[0] + new)] if parts else []


def _broadcast(node: fx.Node, axes: _Axes) -> _Facts:
    root, ranks = axes.root, axes.ranks
    operands = [argument for argument in node.args if isinstance(argument, fx.Node)]
    known = [ranks[operand] for operand in operands if operand in ranks]
    unknown = list(dict.fromkeys(operand for operand in operands if operand not in ranks))
    if not unknown and known:
        return [(node, max(known))]
    if len(unknown) == 1 and node in ranks:
        operand, rank = unknown[0], ranks[node]
        # Of the model's own input it is taken that a constant does not add axes to it.
        from_input = operand.op == "placeholder" or Trait.BROADCASTS in traits(operand)
        if (from_input and not axes.certain) or all(other < rank for other in known):
            return [(operand, rank)]
    if node in ranks and not known and len({_origin(operand, root) for operand in unknown}) == 1:
        return [(operand, ranks[node]) for operand in unknown]
    return []


def _origin(node: fx.Node, root: nn.Module, depth: int = 16) -> fx.Node:
    """The value that a value surely has as many axes as."""
    first = node.args[0] if node.args else None
    if not depth:
        return node
    if Trait.BROADCASTS in traits(node):
        origins = {_origin(operand, root, depth - 1) for operand in node.all_input_nodes}
        return origins.pop() if len(origins) == 1 else node
    if node.op == "call_module":
        keeps = _keeps_axes(layer_at(root, str(node.target)))
    else:
        keeps = Trait.KEEPS_RANK in traits(node)
    return _origin(first, root, depth - 1) if keeps and isinstance(first, fx.Node) else node


def _of_equal_rank(
    node: fx.Node, name: str, operand: fx.Node, module: nn.Module | None
) -> fx.Node | None:
    """The operand that has as many axes as a node's value, if one does."""
    if module is not None:
        keeps = _keeps_axes(module) or name == "BatchNorm1d" or name.startswith("Dropout")
        return operand if name and keeps else None
    properties, other = traits_of(name), _argument(node, 1)
    if Trait.KEEPS_RANK in properties:
        return operand
    if Trait.SHAPE_OF_OTHER in properties:
        return other if isinstance(other, fx.Node) else None
    if name == "getitem" and isinstance(other, tuple) and set(map(type, other)) == {slice}:
        return operand
    first = name == "getitem" and Trait.FIRST_KEEPS_RANK in traits(operand) and other == 0
    return operand.all_input_nodes[0] if first else None


def _equal(node: fx.Node, operand: fx.Node, ranks: Mapping[fx.Node, int]) -> _Facts:
    if node in ranks:
        return [(operand, ranks[node])]
    return [(node, ranks[operand])] if operand in ranks else []


def _torch_name(module: nn.Module) -> str:
    """The name of torch's class whose forward a module runs; empty if it is somebody else's."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.nn"):
            return kind.__name__
        if "forward" in vars(kind):
            break
    return ""


def _keeps_axes(module: nn.Module) -> bool:
    """Whether a module's value has as many axes as its operand."""
    return isinstance(module, _KEEPING_MODULES) or _is_activation(module)


def _is_activation(module: nn.Module) -> bool:
    """Whether a module is one of torch's activations, which work position by position."""
    return type(module).__module__ == "torch.nn.modules.activation" and not isinstance(
        module, nn.MultiheadAttention
    )


def _argument(node: fx.Node, position: int, name: str = "", default: Any = None) -> Any:
    """An argument of a call, by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _rank_of_both(node: fx.Node, name: str, axes: _Axes) -> int | None:
    """The rank that an operator tells of its operand and its value alike."""
    if spatial := _SPATIAL.fullmatch(name.lower()):
        return int(spatial[1]) + 2
    if name == "permute":
        return len(unpacked(node.args[1:])) or None
    weight = _argument(node, 1)
    if name == "batch_norm" and isinstance(weight, fx.Node) and weight.op == "get_attr":
        # Statistics are taken for those of values like their norm's own; fused code checks it.
        holder = read_from(axes.root, str(weight.target))
        norm = None if axes.certain else _SPATIAL.fullmatch(type(holder).__name__.lower())
        return int(norm[1]) + 2 if norm else None
    weighted = name == "convolution" and isinstance(weight, fx.Node)
    return axes.ranks.get(weight) if weighted else None


def _rank_of_value(
    node: fx.Node, name: str, rank: int | None, ones: int, module: nn.Module | None
) -> int | None:
    """The rank of a value whose operand has another one, which may not be known."""
    if name in ("view", "reshape"):
        sizes = unpacked(node.args[1:])
        one_value = len(sizes) == 1 and isinstance(sizes[0], fx.Node)  # a size, or a whole shape
        return None if one_value else len(sizes) or None
    if name in ("flatten", "Flatten"):
        start, end = _argument(node, 1, "start_dim", 0), _argument(node, 2, "end_dim", -1)
        if isinstance(module, nn.Flatten):
            start, end = module.start_dim, module.end_dim
        if not isinstance(start, int) or not isinstance(end, int):
            return None
        if end == -1 and start >= 0:
            return start + 1
        return None if rank is None else rank - (end % rank - start % rank)
    if rank is None:
        return None
    if name == "unflatten":
        sizes = _argument(node, 2)
        return rank + len(sizes) - 1 if isinstance(sizes, tuple | list) else None
    if name in ("mean", "sum"):
        gone = _reduced_axes(node)
        return None if gone is None else rank - gone
    left = _left_axes(node, rank, ones)
    return None if left is None else len(left)


def _rank_of_operand(node: fx.Node, name: str, rank: int) -> int | None:
    """The rank of an operand whose value has another one, which is known."""
    if name in ("mean", "sum"):
        gone = _reduced_axes(node)
        return None if gone is None else rank + gone
    if name == "unsqueeze":
        return rank - 1
    index = _argument(node, 1)
    if name != "getitem" or not isinstance(index, tuple):
        return None
    kinds = [type(entry) for entry in index]
    if not {*kinds} <= {int, slice, type(None), type(...)}:
        return None
    return rank + kinds.count(int) - kinds.count(type(None))


def _reduced_axes(node: fx.Node) -> int | None:
    """How many axes fewer a sum or a mean has than its operand; None if it is over all of them."""
    dims, keep = _argument(node, 1, "dim"), _argument(node, 2, "keepdim", False)
    if dims is None:
        return None
    return 0 if keep else len(dims) if isinstance(dims, tuple | list) else 1


# -- Axes of size 1 --------------------------------------------------------------------------------


def _find_trailing_ones(
    nodes: Sequence[fx.Node], root: nn.Module, ranks: Mapping[fx.Node, int]
) -> dict[fx.Node, int]:
    """How many of the last axes of a value are known to have size 1: those of a global pool."""
    ones: dict[fx.Node, int] = {}
    for node in nodes:
        operand = node.args[0] if node.args else None
        if not isinstance(operand, fx.Node):
            continue
        rank = ranks.get(operand)
        count = _averaged_axes(node, root, rank)
        if count == 0 and operand in ones and _keeps_ones(node, root):
            count = ones[operand]
        elif torch_name(node) in ("view", "reshape"):
            sizes = unpacked(node.args[1:])
            count = len(list(takewhile(lambda size: size == 1, reversed(sizes))))
        elif rank is not None and (axes := _left_axes(node, rank, ones.get(operand, 0))):
            count = len(list(takewhile(bool, reversed(axes))))
        if count:
            ones[node] = count
    return ones


def _keeps_ones(node: fx.Node, root: nn.Module) -> bool:
    """Whether axes of size 1 after the channels surely stay so."""
    if node.op != "call_module":
        return keeps_shape(node, root)
    module = layer_at(root, str(node.target))
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        taps = {*module.kernel_size, *module.dilation}
        return taps == {1} and module.padding in (0, (0,) * len(module.kernel_size), "valid")
    batch_norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Identity)
    return isinstance(module, batch_norms) or keeps_shape(node, root)


def _averaged_axes(node: fx.Node, root: nn.Module, rank: int | None) -> int:
    """How many last axes a node averages over and keeps with size 1."""
    name, size = torch_name(node), _argument(node, 1)
    if node.op == "call_module":
        module = layer_at(root, str(node.target))
        name, size = type(module).__name__, getattr(module, "output_size", None)
    pool = re.match(r"(?:AdaptiveAvgPool|adaptive_avg_pool)([123])d$", name)
    if pool:
        sizes = size if isinstance(size, tuple | list) else (size,)
        return int(pool[1]) if all(entry == 1 for entry in sizes) else 0
    if name == "mean" and rank is not None and _argument(node, 2, "keepdim") is True:
        dims = _argument(node, 1, "dim")
        axes = dims if isinstance(dims, tuple | list) else (dims,)
        if all(isinstance(axis, int) for axis in axes):
            positions = {int(str(axis)) % rank for axis in axes}
            if positions == set(range(rank - len(positions), rank)):
                return len(positions)
    return 0


def _left_axes(node: fx.Node, rank: int, ones: int) -> list[bool] | None:
    """For each axis of an index, a squeeze or an unsqueeze whether it is known to have size 1."""
    axes = [False] * (rank - ones) + [True] * ones
    asked, name = _argument(node, 1, "dim"), torch_name(node)
    if name == "unsqueeze" and isinstance(asked, int):
        axes.insert(asked % (rank + 1), True)
        return axes
    if name == "squeeze":
        dims = asked if isinstance(asked, tuple | list) else (asked,)
        gone = {axis % rank if isinstance(axis, int) else 0 for axis in dims}
        kept = [single for axis, single in enumerate(axes) if axis not in gone]
        return kept if all(axes[axis] for axis in gone) else None
    return _indexed(axes, asked) if name == "getitem" and isinstance(asked, tuple) else None


def _indexed(axes: list[bool], index: tuple[Any, ...]) -> list[bool] | None:
    """The axes that an index leaves: integers take theirs away, None makes a new one."""
    if not {type(entry) for entry in index} <= {int, slice, type(None), type(...)}:
        return None
    entries: list[Any] = [*index] if ... in index else [*index, ...]
    at = entries.index(...)
    taken = sum(entry is not None for entry in entries) - 1
    entries[at : at + 1] = [slice(None)] * (len(axes) - taken)
    sizes = iter(axes)
    left: list[bool] = []
    for entry in entries:
        single = entry is None or next(sizes)
        if not isinstance(entry, int):
            left.append(single and entry in (None, slice(None)))
    return left
