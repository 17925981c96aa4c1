"""Batch norms that one forward still executes although a neighbour could have absorbed them.

Independent of the library under test: it follows the tensors that PyTorch's operators read
and write.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tests.support.counting import (
    BATCH_NORMS,
    CONVOLUTIONS,
    LINEARS,
    TRANSPOSED,
    ExecutedOperators,
    is_view,
    operator_name,
    writes,
)

WHOLE_VIEWS = {
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "permute",
    "transpose",
    "squeeze",
    "unsqueeze",
    "contiguous",
    "view_as",
    "reshape_as",
}


@dataclass
class _Value:
    operator: str
    args: Sequence[Any] = ()
    readers: list["_Value"] = field(default_factory=list)
    reads: list["_Value"] = field(default_factory=list)


@dataclass(frozen=True)
class Leftover:
    """A batch norm and the neighbour that could have absorbed it."""

    operator: str
    place: str
    channels: int

    def __str__(self) -> str:
        return f"batch norm of {self.channels} channels {self.place} {self.operator}"


class _Reads:
    """Who reads what; `values` is keyed by the identity of tensors that `alive` keeps alive."""

    def __init__(self) -> None:
        self.values: dict[int, _Value] = {}
        self.norms: list[_Value] = []
        self.weights: list[int] = []
        self.alive: list[Any] = []

    def value_of(self, tensor: Tensor) -> _Value:
        self.alive.append(tensor)
        return self.values.setdefault(id(tensor), _Value("input"))

    def seen(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        name = operator_name(func)
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.alive.append((inputs, outputs))
        if not writes(func) and any(o is i for o in outputs for i in inputs):
            return  # dropout in evaluation
        if is_view(func) and name in WHOLE_VIEWS:
            self.values[id(outputs[0])] = self.value_of(inputs[0])
            return
        value = _Value(name, args)
        for read in {id(v): v for v in map(self.value_of, inputs)}.values():
            read.readers.append(value)
            value.reads.append(read)
        for tensor in outputs:
            self.values[id(tensor)] = value
        if name in BATCH_NORMS and args[3] is not None:  # it has statistics of its own
            self.norms.append(value)
        if name in CONVOLUTIONS | TRANSPOSED | LINEARS:
            self.weights.append(id(args[1]))

    def leftovers(self) -> list[Leftover]:
        found = []
        for norm in self.norms:
            channels = norm.args[3].numel()
            before, after = self.values[id(norm.args[0])], norm.readers
            if self._absorbs_behind(before, norm, channels):
                found.append(Leftover(before.operator, "behind", channels))
            elif len(after) == 1 and self._absorbs_before(after[0], norm, channels):
                found.append(Leftover(after[0].operator, "before", channels))
        return found

    def _absorbs_behind(self, before: _Value, norm: _Value, channels: int) -> bool:
        if before.readers != [norm] or before.operator not in CONVOLUTIONS | TRANSPOSED | {
            "linear"
        }:
            return False
        weight = before.args[1]
        out = weight.shape[0] if before.operator not in TRANSPOSED else channels
        return out == channels and self.weights.count(id(weight)) == 1

    def _absorbs_before(self, after: _Value, norm: _Value, channels: int) -> bool:
        if (
            after.operator not in CONVOLUTIONS | {"linear"}
            or self.value_of(after.args[0]) is not norm
        ):
            return False
        weight = after.args[1]
        padding = after.args[4] if after.operator != "linear" and len(after.args) > 4 else (0,)
        groups = after.args[6] if after.operator != "linear" and len(after.args) > 6 else 1
        padded = isinstance(padding, str) or any(padding)
        same = weight.shape[1] * groups == channels
        return same and not padded and self.weights.count(id(weight)) == 1


def leftover_batch_norms(model: nn.Module, inputs: Sequence[Any]) -> list[Leftover]:
    """The batch norms between which and a convolution or linear layer nobody else reads.

    A batch norm counts as left when its input is the value of a convolution or linear layer,
    possibly reshaped, and it is the only reader of that value; or when the only reader of its own
    value is a linear layer or a convolution without padding. A layer that is called more than once,
    or whose weight serves two layers, absorbs nothing.
    """
    model, inputs = deepcopy(model), deepcopy(tuple(inputs))
    reads = _Reads()
    with ExecutedOperators(reads.seen):
        output = model(*inputs)
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            reads.value_of(leaf).readers.append(_Value("output"))
    return reads.leftovers()
