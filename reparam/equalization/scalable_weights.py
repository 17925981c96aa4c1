"""The layers of a graph whose weights may take a scale, and why those of others may not.

A weight may be scaled if nobody but one operator reads it: it is a parameter that is registered
once, whose memory nothing else looks at, and that no other code of the model uses.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.algebra import AffineConv
from reparam.analysis import Part, target_of
from reparam.errors import Refusal
from reparam.modules import fetch, is_plain, memory, own_tensors, read_from, tensors_held
from reparam.rules import (
    convolution_function,
    convolution_module,
    general_convolution,
    in_names_of,
    linear,
    linear_module,
    transposed_function,
    transposed_module,
)

_OF_MODULES: tuple[Callable[..., Any], ...] = (convolution_module, linear_module, transposed_module)

_OF_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    convolution_function,
    general_convolution,
    linear,
    transposed_function,
)

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


@dataclass(frozen=True)
class Weights:
    """The paths of the weights of a convolution, transposed or not, or of a linear layer."""

    weight: str
    bias: str | None
    groups: int
    transposed: bool

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of all."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


def find_weights(part: Part, shared: set[int]) -> dict[fx.Node, Weights | Refusal]:
    """The operators of a part that have weights, and whether these may be scaled.

    Several tensors of the model look at the shared memory.
    """
    everything = {
        node: weights
        for node in part.trace.graph.nodes
        if (weights := _weights_of(node, part)) is not None
    }
    root = part.trace.root
    readers = _readers(part, everything)
    result: dict[fx.Node, Weights | Refusal] = {}
    for node, weights in everything.items():
        problems = [_problem(path, part, shared) for path in weights.paths]
        tensors = [fetch(root, path) for path in weights.paths]
        if any(len(readers[memory(tensor)]) > 1 for tensor in tensors):
            problems.append(Refusal("its weights are also read by other code"))
        result[node] = next(filter(None, problems), weights)
    return result


def shared_memory(model: nn.Module) -> set[int]:
    """The memory that more than one tensor of a model looks at, or one that has two owners."""
    owners = Counter(
        memory(tensor) for module in model.modules() for tensor in own_tensors(module).values()
    )
    lookers = Counter(map(memory, tensors_held(model)))
    return {key for counts in (owners, lookers) for key, count in counts.items() if count > 1}


def _weights_of(node: fx.Node, part: Part) -> Weights | None:
    rule = part.rules.find(target_of(node, part.trace.root))
    step = part.steps.get(node)
    if not isinstance(step, AffineConv) or step.columns is not None:
        return None
    if rule in _OF_MODULES:
        path = str(node.target)
        module = fetch(part.trace.root, path)
        bias = None if module.bias is None else f"{path}.bias"
        groups = getattr(module, "groups", 1)
        return Weights(f"{path}.weight", bias, groups, rule is transposed_module)
    if rule not in _OF_FUNCTIONS or rule is None:
        return None
    bound = inspect.signature(rule).bind(*node.args, **in_names_of(rule, node.kwargs))
    bound.apply_defaults()
    arguments = bound.arguments
    weight, bias_node = arguments["weight"], arguments["bias"]
    for value in (weight, bias_node):
        if value is not None and not (isinstance(value, fx.Node) and value.op == "get_attr"):
            return None
    transposed = rule is transposed_function or arguments.get("transposed", False)
    bias = None if bias_node is None else str(bias_node.target)
    return Weights(str(weight.target), bias, arguments.get("groups", 1), transposed)


def _readers(part: Part, found: Mapping[fx.Node, Weights]) -> dict[int, set[Any]]:
    """For each piece of memory what reads it: operators by their weights, all others by node."""
    root, numbers = part.trace.root, part.facts.numbers
    readers: dict[int, set[Any]] = {}
    for node, weights in found.items():
        tensors = [fetch(root, path) for path in weights.paths]
        identity = (*map(id, tensors), weights.groups, weights.transposed)
        for tensor in tensors:
            readers.setdefault(memory(tensor), set()).add(identity)
        if len(tensors) == 2 and memory(tensors[0]) == memory(tensors[1]):
            readers[memory(tensors[0])].add(node)
    for call in part.trace.calls:
        for path in call.deciding:  # its numbers decided what some code does
            readers.setdefault(memory(fetch(root, path)), set()).add(call)
    for node in part.trace.graph.nodes:
        if node.op == "call_module" and node not in found:
            module = fetch(root, str(node.target))
            for tensor in (*module.parameters(), *module.buffers()):
                readers.setdefault(memory(tensor), set()).add(node)
        elif node.op == "get_attr":
            value = fetch(root, str(node.target))
            tensors = list(value.parameters()) if isinstance(value, nn.Module) else [value]
            # As the input of an operator of this kind it is read like by any other.
            others = [
                user
                for user in node.users
                if (_is_input(node, user) if user in found else user not in numbers)
            ]
            for tensor in tensors:
                if isinstance(tensor, Tensor):
                    readers.setdefault(memory(tensor), set()).update(others)
    return readers


def _is_input(value: fx.Node, node: fx.Node) -> bool:
    return value in (*node.args[:1], node.kwargs.get("input"), node.kwargs.get("self"))


def _problem(path: str, part: Part, shared: set[int]) -> Refusal | None:
    """Why one weight may not be scaled, whoever reads it."""
    tensor = fetch(part.trace.root, path)
    if not isinstance(tensor, nn.Parameter):
        return Refusal("its weight or bias is no parameter")
    if not is_plain(tensor) or tensor.layout is not torch.strided:
        return Refusal(f"its weights are of a class of its own, {type(tensor).__name__}")
    if tensor.is_meta:
        return Refusal("its weights are on the meta device")
    if tensor.dtype is torch.float16:
        return Refusal(
            "in float16 larger values may overflow: equalise in float32 or bfloat16, then convert"
        )
    if tensor.dtype not in _DTYPES:
        return Refusal(f"its weights are of type {tensor.dtype}")
    if not bool(tensor.isfinite().all()):
        return Refusal("a weight is NaN or infinite")
    if memory(tensor) in shared:
        return Refusal("its weights share memory with other tensors of the model")
    if id(read_from(part.trace.root, path)) in part.shared:
        return Refusal("its module is used by two parts of the model, traced apart")
    return None
