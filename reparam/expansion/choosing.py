"""Which layers of a model may be expanded: those that code only calls."""

from __future__ import annotations

from collections import Counter

from torch import nn
from torch.nn.utils import parametrize

from reparam.analysis import Part
from reparam.capture.reading import Reach
from reparam.errors import Refusal
from reparam.expansion.expanded_layers import ExpandedLayer
from reparam.expansion.noticing import graphs, parts_of
from reparam.modules import (
    Choice,
    chosen,
    fetch,
    own_tensors,
    read_from,
    unlike_its_class,
)

ASKED = Refusal("code asks of what kind it is")

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class Candidates:
    """Tells which layers of a model may be replaced, in eval mode, but for those to be kept.

    Attributes:
        graphs: What the code of the model does.
    """

    def __init__(self, model: nn.Module, keep: Choice = None) -> None:
        kept = {} if keep is None else chosen(model, keep, "keep")
        self._kept = {id(part) for module in kept.values() for part in module.modules()}
        traced = parts_of(model)
        parts, untraced = traced
        self.graphs = graphs(traced)
        self._parts_of_expanded = {
            id(part)
            for module in model.modules()
            if isinstance(module, ExpandedLayer)
            for part in module.modules()
        }
        self._called = {id(stays.module) for stays in untraced}
        reach = Reach()
        for stays in untraced:
            if type(stays.module) not in LAYERS:
                reach.follow(stays.module)
        self._read, self._asked = set(reach.opened), reach.asked
        for part in parts:
            called, read = _used(part)
            self._called |= called
            self._read |= read
        self._tensors = Counter(
            id(tensor)
            for module in {id(module): module for module in model.modules()}.values()
            for tensor in own_tensors(module).values()
        )
        names = model.named_modules(remove_duplicate=False)
        self._names = Counter(id(module) for _, module in names)

    def refusal(self, layer: nn.Module) -> Refusal | None:
        """Why a layer is none that may be expanded, if so."""
        if id(layer) in self._kept:
            return Refusal("keep= lets it stay as it is")
        if type(layer) not in LAYERS:
            return Refusal(f"a {type(layer).__name__} is no convolution or linear layer of torch's")
        if id(layer) in self._parts_of_expanded:
            return Refusal("it is in a branch of an expanded layer")
        if parametrize.is_parametrized(layer):
            return Refusal("its weight is parametrized")
        if (problem := unlike_its_class(layer)) is not None:
            return problem
        if any(not tensor.is_floating_point() for tensor in own_tensors(layer).values()):
            return Refusal("its weights are no floating-point numbers")
        if self._names[id(layer)] > 1:
            return Refusal("it is registered under several names")
        if any(self._tensors[id(tensor)] > 1 for tensor in own_tensors(layer).values()):
            return Refusal("it shares its weights with other modules")
        if id(layer) in self._read:
            return Refusal("code reads its weights")
        if id(layer) in self._asked:
            return ASKED
        if id(layer) not in self._called:
            return Refusal("no code is known that calls it and does no more")
        return None


def _used(part: Part) -> tuple[set[int], set[int]]:
    """The layers that a part calls, and those whose tensors its code, or others', uses."""
    root = part.trace.root
    called: set[int] = set()
    read = part.typed()
    for node in part.trace.graph.nodes:
        if node.op == "call_module":
            called.add(id(fetch(root, str(node.target))))
        elif node.op == "get_attr":
            read.add(id(read_from(root, str(node.target))))
    return called, read
