"""What each operator tells of the number of axes of its value and of its operand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from reparam.capture import Trait, torch_name, traits, traits_of
from reparam.modules import fetch

_RANKED_MODULE = {"1d": 3, "2d": 4, "3d": 5}

_RANKED_FAMILIES = ("Conv", "BatchNorm", "InstanceNorm", "AvgPool", "MaxPool", "Adaptive")

_KEEPING_MODULES = (
    nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.Identity, nn.Dropout, nn.Softmax, nn.SyncBatchNorm,
)  # fmt: skip


@dataclass(frozen=True)
class Axes:
    """What is known of axes so far.

    Args:
        root: The module that the nodes' paths refer to.
        ranks: The number of axes of each value, where known.
        ones: How many of its last axes have size 1, where known.
    """

    root: nn.Module
    ranks: Mapping[fx.Node, int]
    ones: Mapping[fx.Node, int]


RankFacts = list[tuple[fx.Node, int]]

RankLaw = Callable[[fx.Node, fx.Node, Axes], RankFacts]


def rank_facts(node: fx.Node, known: Axes) -> RankFacts:
    """What a node tells of the ranks of its own value and of its operand's.

    An operator over n spatial axes is taken to get a batch: rank n + 2.
    """
    ranks = known.ranks
    name = torch_name(node)
    if name in _JOINING:
        return _joined(node, name, ranks)
    if Trait.BROADCASTS in traits_of(name):
        return _broadcast(node, known)
    operand = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(operand, fx.Node):
        return []
    if node.op == "call_module":
        return _of_module(node, operand, fetch(known.root, str(node.target)), ranks)
    if "length" in node.meta and (name == "size" or node.args[1:] == ("shape",)):
        return [(operand, int(node.meta["length"]))]
    if name in _LAWS:
        return _LAWS[name](node, operand, known)
    return _equal(node, operand, ranks) if Trait.KEEPS_RANK in traits_of(name) else []


def _of_module(
    node: fx.Node, operand: fx.Node, module: nn.Module, ranks: Mapping[fx.Node, int]
) -> RankFacts:
    name = _torch_name(module)
    rank = _RANKED_MODULE.get(name[-2:])
    if rank is not None and name.startswith(_RANKED_FAMILIES) and name != "BatchNorm1d":
        return [(node, rank), (operand, rank)]
    if name and isinstance(module, nn.Flatten):
        return _flatten_rank(node, ranks.get(operand), module.start_dim, module.end_dim)
    keeps = keeps_axes(module) or name == "BatchNorm1d" or name.startswith("Dropout")
    return _equal(node, operand, ranks) if name and keeps else []


def _joined(node: fx.Node, name: str, ranks: Mapping[fx.Node, int]) -> RankFacts:
    """Values side by side; a stack has one more axis."""
    several = node.args[0] if node.args else None
    if not isinstance(several, tuple | list):
        return []
    known = [ranks[value] for value in several if isinstance(value, fx.Node) and value in ranks]
    return [(node, known[0] + (name == "stack"))] if known else []


def _over(axes: int) -> RankLaw:
    """An operator over spatial axes: it is taken to get a batch."""

    def law(node: fx.Node, operand: fx.Node, known: Axes) -> RankFacts:
        del known
        return [(node, axes + 2), (operand, axes + 2)]

    return law


def _convolution(node: fx.Node, operand: fx.Node, known: Axes) -> RankFacts:
    weight = node.args[1] if len(node.args) > 1 else None
    if not isinstance(weight, fx.Node) or weight not in known.ranks:
        return []
    return [(node, known.ranks[weight]), (operand, known.ranks[weight])]


def _flatten(node: fx.Node, operand: fx.Node, known: Axes) -> RankFacts:
    bounds = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | dict(node.kwargs)
    start, end = bounds.get("start_dim", 0), bounds.get("end_dim", -1)
    return _flatten_rank(node, known.ranks.get(operand), start, end)


def _permute(node: fx.Node, operand: fx.Node, known: Axes) -> RankFacts:
    del known
    order = _spread(node.args[1:])
    return [(node, len(order)), (operand, len(order))] if order else []


def _reshape(node: fx.Node, operand: fx.Node, known: Axes) -> RankFacts:
    del operand, known
    sizes = _spread(node.args[1:])
    one_value = len(sizes) == 1 and isinstance(sizes[0], fx.Node)  # a size, or a whole shape
    return [(node, len(sizes))] if sizes and not one_value else []


def _reshape_as(node: fx.Node, operand: fx.Node, known: Axes) -> RankFacts:
    del operand
    other = node.args[1] if len(node.args) > 1 else None
    return _equal(node, other, known.ranks) if isinstance(other, fx.Node) else []


def _reduce(node: fx.Node, operand: fx.Node, known: Axes) -> RankFacts:
    dims, keep = reduction(node)
    if operand not in known.ranks or dims is None:
        return []
    count = len(dims) if isinstance(dims, tuple | list) else 1
    return [(node, known.ranks[operand] if keep else known.ranks[operand] - count)]


def _regroup(node: fx.Node, operand: fx.Node, known: Axes) -> RankFacts:
    if Trait.FIRST_KEEPS_RANK in traits(operand) and node.args[1:] == (0,):
        return _equal(node, operand.all_input_nodes[0], known.ranks)
    if operand not in known.ranks:
        return []
    axes = regrouped(node, known.ranks[operand], known.ones.get(operand, 0))
    return [] if axes is None else [(node, len(axes))]


def _unflatten(node: fx.Node, operand: fx.Node, known: Axes) -> RankFacts:
    sizes = node.args[2] if len(node.args) > 2 else None
    if operand not in known.ranks or not isinstance(sizes, tuple | list):
        return []
    return [(node, known.ranks[operand] + len(sizes) - 1)]


_JOINING = ("cat", "stack")

_LAWS: dict[str, RankLaw] = {
    **{
        f"{family}{axes}d": _over(axes)
        for family in (
            *("conv", "conv_transpose", "avg_pool", "max_pool"),
            *("adaptive_avg_pool", "adaptive_max_pool"),
        )
        for axes in (1, 2, 3)
    },
    "convolution": _convolution,
    "flatten": _flatten,
    "unflatten": _unflatten,
    "permute": _permute,
    **dict.fromkeys(("view", "reshape"), _reshape),
    **dict.fromkeys(("view_as", "reshape_as", "expand_as"), _reshape_as),
    **dict.fromkeys(("mean", "sum"), _reduce),
    **dict.fromkeys(("squeeze", "unsqueeze", "getitem"), _regroup),
}
"""Operators whose value has another number of axes than its operand, or that tell how many."""


def _spread(sizes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Sizes or axes, however a call packs them."""
    packed = len(sizes) == 1 and isinstance(sizes[0], tuple | list)
    return tuple(sizes[0]) if packed else sizes


def reduction(node: fx.Node) -> tuple[Any, Any]:
    """The axes that a sum or a mean is taken over, and whether they stay with size 1."""
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    return dims, keep


def _torch_name(module: nn.Module) -> str:
    """The name of torch's class whose forward a module runs; empty if it is somebody else's."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.nn"):
            return kind.__name__
        if "forward" in vars(kind):
            break
    return ""


def keeps_axes(module: nn.Module) -> bool:
    """Whether a module's value has as many axes as its operand."""
    return isinstance(module, _KEEPING_MODULES) or is_activation(module)


def is_activation(module: nn.Module) -> bool:
    """Whether a module is one of torch's activations, which work position by position."""
    return type(module).__module__ == "torch.nn.modules.activation" and not isinstance(
        module, nn.MultiheadAttention
    )


def _equal(node: fx.Node, operand: fx.Node, ranks: Mapping[fx.Node, int]) -> RankFacts:
    if node in ranks:
        return [(operand, ranks[node])]
    return [(node, ranks[operand])] if operand in ranks else []


def _broadcast(node: fx.Node, axes: Axes) -> RankFacts:
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
        if from_input or all(other < rank for other in known):
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
        keeps = keeps_axes(fetch(root, str(node.target)))
    else:
        keeps = Trait.KEEPS_RANK in traits(node)
    return _origin(first, root, depth - 1) if keeps and isinstance(first, fx.Node) else node


def _flatten_rank(node: fx.Node, known: int | None, start: Any, end: Any) -> RankFacts:
    if not isinstance(start, int) or not isinstance(end, int):
        return []
    if end == -1 and start >= 0:
        return [(node, start + 1)]
    if known is None:
        return []
    return [(node, known - (end % known - start % known))]


def regrouped(node: fx.Node, rank: int, ones: int) -> list[bool] | None:
    """For each axis of an index, a squeeze or an unsqueeze whether it is known to have size 1."""
    axes = [False] * (rank - ones) + [True] * ones
    asked = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    name = torch_name(node)
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
