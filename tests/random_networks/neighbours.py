"""Affine operators that still stand side by side in a fused network, and who has to explain them.

Independent of the library under test: it follows the tensors that PyTorch's operators read and
write, and the modules that run them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.utils._pytree import tree_leaves

from tests.support.counting import (
    ADDITIONS,
    BATCH_NORMS,
    CONVOLUTIONS,
    LINEARS,
    MULTIPLICATIONS,
    TRANSPOSED,
    ExecutedOperators,
    is_view,
    operator_name,
    writes,
)
from tests.support.leftovers import WHOLE_VIEWS

KINDS = {
    "convolution": CONVOLUTIONS | TRANSPOSED,
    "linear": LINEARS,
    "batch norm": BATCH_NORMS,
    "addition": ADDITIONS - {"addcmul"},
    "multiplication": MULTIPLICATIONS - {"addcmul"},
}


@dataclass(eq=False)
class Operator:
    """One operator that ran.

    Args:
        kind: One of `KINDS`; empty for all others.
        place: The path of the innermost module that ran it.
        affine: Whether it is one of `KINDS` and acts on a single value, constants apart.
    """

    kind: str
    place: str
    affine: bool
    reads: list["Operator"] = field(default_factory=list)
    readers: list["Operator"] = field(default_factory=list)


class _Run:
    """What reads what; `made` is keyed by the identity of tensors that `alive` keeps alive."""

    def __init__(self, model: nn.Module) -> None:
        self.made: dict[int, Operator] = {}
        self.all: list[Operator] = []
        self.alive: list[Any] = []
        self.paths = {id(module): name for name, module in model.named_modules()}
        self.stack: list[str] = []

    def seen(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.alive.append((inputs, outputs))
        if not writes(func) and any(o is i for o in outputs for i in inputs):
            return  # dropout in evaluation
        name = operator_name(func).removesuffix("_")
        values = {id(v): self.made[id(v)] for v in inputs if id(v) in self.made}
        if not values:
            return  # of parameters only
        if is_view(func) and name in WHOLE_VIEWS:
            self.made[id(outputs[0])] = self.made[id(inputs[0])]
            return
        kind = next((kind for kind, names in KINDS.items() if name in names), "")
        sources = list({id(operator): operator for operator in values.values()}.values())
        alone = len(values) == 1 and id(args[0]) in values and not _does_nothing(kind, args)
        made = Operator(kind, self.stack[-1] if self.stack else "", bool(kind) and alone, sources)
        for source in sources:
            source.readers.append(made)
        for tensor in outputs:
            self.made[id(tensor)] = made
        self.all.append(made)

    def enter(self, module: nn.Module, args: Any) -> None:
        above = self.stack[-1] if self.stack else ""
        self.stack.append(self.paths.get(id(module), above))

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.stack.pop()


def _does_nothing(kind: str, args: Sequence[Any]) -> bool:
    """Whether an operator adds zero or multiplies by one."""
    neutral = {"addition": 0, "multiplication": 1}
    return kind in neutral and not isinstance(args[1], Tensor) and args[1] == neutral[kind]


@contextmanager
def _entered_modules(run: _Run) -> Iterator[None]:
    with ExitStack() as stack:
        stack.callback(module_hooks.register_module_forward_pre_hook(run.enter).remove)
        handle = module_hooks.register_module_forward_hook(run.leave, always_call=True)
        stack.callback(handle.remove)
        yield


def affine_pairs(model: nn.Module, inputs: Sequence[Any]) -> list[tuple[Operator, Operator]]:
    """Pairs of affine operators of which the second, a needed one, alone reads the first."""
    model, inputs = deepcopy(model), deepcopy(tuple(inputs))
    run = _Run(model)
    for leaf in tree_leaves(inputs):
        run.made[id(leaf)] = Operator("", "", False)
    with _entered_modules(run), torch.no_grad(), ExecutedOperators(run.seen):
        output = model(*inputs)
    returned = [id(leaf) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    needed = [run.made[key] for key in returned if key in run.made]
    for operator in needed:
        operator.readers.append(Operator("", "", False))
    live: set[Operator] = set()
    while needed:
        operator = needed.pop()
        if operator not in live:
            live.add(operator)
            needed.extend(operator.reads)
    return [
        (first, second)
        for second in run.all
        if second.affine and second in live
        for first in second.reads
        if first.affine and first.readers == [second]
    ]
