"""The number of axes of each value of a graph, inferred forwards and backwards."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from torch import fx, nn

from reparam.capture.operators import Trait, operator_name, traits
from reparam.modules.tree import fetch

_RANKED_MODULE = {"1d": 3, "2d": 4, "3d": 5}

_RANKED_FAMILIES = ("Conv", "BatchNorm", "InstanceNorm", "AvgPool", "MaxPool", "Adaptive")

_KEEPING_MODULES = (
    nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.Identity, nn.Dropout, nn.Softmax, nn.SyncBatchNorm,
)  # fmt: skip

_RANKED_NAMES = re.compile(r"(conv|conv_transpose|(adaptive_)?(avg|max)_pool)([123])d$")


def find_axes(
    nodes: Sequence[fx.Node], root: nn.Module, known: Mapping[fx.Node, int]
) -> tuple[dict[fx.Node, int], dict[fx.Node, int]]:
    """The number of axes of each value, and how many of its last axes have size 1, where known.

    Args:
        nodes: The nodes of the graph, in order.
        root: The module that the nodes' paths refer to.
        known: Numbers of axes known beforehand.
    """
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
    """Infer ranks until nothing new is learned.

    An operator over n spatial axes is taken to get a batch: rank n + 2.

    Args:
        nodes: The nodes of the graph, in order.
        root: The module that the nodes' paths refer to.
        known: Ranks known beforehand.
        ones: Number of last axes that have size 1, where known.
    """
    ranks = dict(known)
    if len(ranks) >= len(nodes) - 1:
        return ranks
    changed = True
    while changed:
        changed = False
        for direction in (nodes, reversed(nodes)):
            for node in direction:
                for value, rank in _rank_facts(node, root, ranks, ones):
                    if value not in ranks:
                        ranks[value] = rank
                        changed = True
    return ranks


def _rank_facts(
    node: fx.Node,
    root: nn.Module,
    ranks: Mapping[fx.Node, int],
    ones: Mapping[fx.Node, int],
) -> list[tuple[fx.Node, int]]:
    """What a node tells of the ranks of its own value and of its operand's."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    operand = first if isinstance(first, fx.Node) else None
    if node.op == "call_module" and operand is not None:
        module = fetch(root, str(node.target))
        name = _torch_name(module)
        if name:
            rank = _RANKED_MODULE.get(name[-2:])
            if rank is not None and name.startswith(_RANKED_FAMILIES) and name != "BatchNorm1d":
                return [(node, rank), (operand, rank)]
            if isinstance(module, nn.Flatten):
                return _flatten_rank(node, ranks.get(operand), module.start_dim, module.end_dim)
            if _keeps_axes(module) or name == "BatchNorm1d" or name.startswith("Dropout"):
                return _equal(node, operand, ranks)
        return []
    name = operator_name(node)
    if node.op == "call_function" and name in ("cat", "stack") and isinstance(first, tuple | list):
        more = 1 if name == "stack" else 0
        joined = [ranks[value] for value in first if isinstance(value, fx.Node) and value in ranks]
        return [(node, joined[0] + more)] if joined else []
    if Trait.BROADCASTS in traits(node):
        return _broadcast(node, root, ranks)
    if node.op not in ("call_function", "call_method") or operand is None:
        return []
    ranked = _RANKED_NAMES.match(name)
    if ranked:
        rank = int(ranked[4]) + 2
        return [(node, rank), (operand, rank)]
    if name == "convolution" and node.args[1] in ranks:
        rank = ranks[node.args[1]]  # type: ignore[index]
        return [(node, rank), (operand, rank)]
    if name == "getitem" and Trait.FIRST_KEEPS_RANK in traits(operand) and node.args[1] == 0:
        return _equal(node, operand.all_input_nodes[0], ranks)
    if "length" in node.meta and (name == "size" or node.args[1:] == ("shape",)):
        return [(operand, int(node.meta["length"]))]
    known = ranks.get(operand)
    if name == "flatten":
        rest = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | dict(node.kwargs)
        return _flatten_rank(node, known, rest.get("start_dim", 0), rest.get("end_dim", -1))
    if name == "permute":
        order: Any = node.args[1:]
        order = order[0] if len(order) == 1 and isinstance(order[0], tuple | list) else order
        return [(node, len(order)), (operand, len(order))] if order else []
    if name in ("view", "reshape"):
        sizes: Any = node.args[1:]
        if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
            sizes = tuple(sizes[0])
        if len(sizes) == 1 and isinstance(sizes[0], fx.Node):
            return []
        return [(node, len(sizes))] if sizes else []
    if name in ("reshape_as", "view_as", "expand_as") and len(node.args) > 1:
        other = node.args[1]
        return _equal(node, other, ranks) if isinstance(other, fx.Node) else []
    if name in ("mean", "sum") and known is not None:
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        count = len(dims) if isinstance(dims, tuple | list) else 1
        keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        return [(node, known if keep else known - count)] if dims is not None else []
    if name in _REGROUPING and known is not None:
        regrouped = _regrouped(node, known, ones.get(operand, 0))
        return [] if regrouped is None else [(node, len(regrouped))]
    if name == "unflatten" and known is not None and len(node.args) > 2:
        sizes = node.args[2]
        return [(node, known + len(sizes) - 1)] if isinstance(sizes, tuple | list) else []
    if Trait.KEEPS_RANK in traits(node):
        return _equal(node, operand, ranks)
    return []


def _torch_name(module: nn.Module) -> str:
    """The name of torch's class whose forward a module runs; empty if it is somebody else's."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.nn"):
            return kind.__name__
        if "forward" in vars(kind):
            break
    return ""


def keeps_shape(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node's value surely has the shape of its operand: activations and the like."""
    if node.op == "call_module":
        module = fetch(root, str(node.target))
        return _is_activation(module) or type(module).__name__.startswith(("Dropout", "LayerNorm"))
    return Trait.KEEPS_SHAPE in traits(node)


def keeps_type(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node's value is of a floating-point type if an operand is."""
    if node.op == "call_module":
        name = type(fetch(root, str(node.target))).__name__
        return keeps_shape(node, root) or name.startswith(
            ("MaxPool", "Flatten", "Unflatten", "Identity", "Upsampl", "PixelShuffle")
        )
    return Trait.KEEPS_TYPE in traits(node)


def _keeps_axes(module: nn.Module) -> bool:
    """Whether a module's value has as many axes as its operand."""
    return isinstance(module, _KEEPING_MODULES) or _is_activation(module)


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ == "torch.nn.modules.activation" and not isinstance(
        module, nn.MultiheadAttention
    )


def _equal(
    node: fx.Node, operand: fx.Node, ranks: Mapping[fx.Node, int]
) -> list[tuple[fx.Node, int]]:
    if node in ranks:
        return [(operand, ranks[node])]
    return [(node, ranks[operand])] if operand in ranks else []


def _broadcast(
    node: fx.Node, root: nn.Module, ranks: Mapping[fx.Node, int]
) -> list[tuple[fx.Node, int]]:
    operands = [argument for argument in node.args if isinstance(argument, fx.Node)]
    known = [ranks[operand] for operand in operands if operand in ranks]
    unknown = list(dict.fromkeys(operand for operand in operands if operand not in ranks))
    if not unknown and known:
        return [(node, max(known))]
    if len(unknown) == 1 and node in ranks:
        operand, rank = unknown[0], ranks[node]
        # Of the model's own input it is taken that a constant does not add axes to it.
        from_input = operand.op == "placeholder" or Trait.BROADCASTS in traits(operand)
        if from_input or all(other < rank for other in known):
            return [(operand, rank)]
    if node in ranks and not known and len({_origin(one, root) for one in unknown}) == 1:
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
        keeps = _keeps_axes(fetch(root, str(node.target)))
    else:
        keeps = Trait.KEEPS_RANK in traits(node)
    return _origin(first, root, depth - 1) if keeps and isinstance(first, fx.Node) else node


def _flatten_rank(
    node: fx.Node, known: int | None, start: Any, end: Any
) -> list[tuple[fx.Node, int]]:
    if not isinstance(start, int) or not isinstance(end, int):
        return []
    if end == -1 and start >= 0:
        return [(node, start + 1)]
    if known is None:
        return []
    return [(node, known - (end % known - start % known))]


def find_trailing_ones(
    nodes: Sequence[fx.Node], root: nn.Module, ranks: Mapping[fx.Node, int]
) -> dict[fx.Node, int]:
    """How many of the last axes of a value are known to have size 1: those of a global pool.

    Args:
        nodes: The nodes of the graph, in order.
        root: The module that the nodes' paths refer to.
        ranks: Ranks, where known.
    """
    ones: dict[fx.Node, int] = {}
    for node in nodes:
        operand = node.args[0] if node.args else None
        if not isinstance(operand, fx.Node):
            continue
        rank = ranks.get(operand)
        count = _pooled_axes(node, root, rank)
        if count == 0 and operand in ones and _keeps_ones(node, root):
            count = ones[operand]
        elif operator_name(node) in _REGROUPING and rank is not None:
            regrouped = _regrouped(node, rank, ones.get(operand, 0)) or []
            count = len(list(takewhile(bool, reversed(regrouped))))
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


_REGROUPING = ("squeeze", "unsqueeze", "getitem")


def _regrouped(node: fx.Node, rank: int, ones: int) -> list[bool] | None:
    """For each axis of an index, a squeeze or an unsqueeze whether it is known to have size 1."""
    axes = [False] * (rank - ones) + [True] * ones
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    name = operator_name(node)
    if name == "unsqueeze" and isinstance(given, int):
        axes.insert(given % (rank + 1), True)
        return axes
    if name == "squeeze":
        dims = given if isinstance(given, tuple | list) else (given,)
        gone = {axis % rank if isinstance(axis, int) else 0 for axis in dims}
        kept = [one for axis, one in enumerate(axes) if axis not in gone]
        return kept if all(axes[axis] for axis in gone) else None
    if name != "getitem" or not isinstance(given, tuple):
        return None
    if not {type(entry) for entry in given} <= {int, slice, type(None), type(...)}:
        return None
    entries: list[Any] = [*given] if ... in given else [*given, ...]
    at = entries.index(...)
    taken = sum(entry is not None for entry in entries) - 1
    entries[at : at + 1] = [slice(None)] * (rank - taken)
    sizes = iter(axes)
    found: list[bool] = []
    for entry in entries:
        one = entry is None or next(sizes)
        if not isinstance(entry, int):
            found.append(one and entry in (None, slice(None)))
    return found


def _pooled_axes(node: fx.Node, root: nn.Module, rank: int | None) -> int:
    """How many last axes a node averages over and keeps with size 1."""
    name, size = operator_name(node), node.args[1] if len(node.args) > 1 else None
    if node.op == "call_module":
        module = fetch(root, str(node.target))
        name, size = type(module).__name__, getattr(module, "output_size", None)
    pool = re.match(r"(?:AdaptiveAvgPool|adaptive_avg_pool)([123])d$", name)
    if pool:
        sizes = size if isinstance(size, tuple | list) else (size,)
        return int(pool[1]) if all(entry == 1 for entry in sizes) else 0
    if name == "mean" and rank is not None:
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        axes = dims if isinstance(dims, tuple | list) else (dims,)
        if keep is True and all(isinstance(axis, int) for axis in axes):
            positions = {int(str(axis)) % rank for axis in axes}
            if positions == set(range(rank - len(positions), rank)):
                return len(positions)
    return 0
