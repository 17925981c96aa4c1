"""Graphs that somebody else recorded, taken as they are: flat graph modules, exported programs.

They are not traced again, so that what they say of themselves stays: the names of values, their
metadata, how arguments and results are packed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_unflatten

from reparam.capture.operator_traits import Trait, operator_name, traits_of
from reparam.capture.trace import Call, Trace
from reparam.modules import fetch
from reparam.rules import Rules


@dataclass(eq=False)
class RecordedTrace(Trace):
    """A trace whose graph is a copy of a recorded one: edited, it is the root's whole code."""


def recorded_trace(root: nn.Module, rules: Rules, path: str) -> RecordedTrace | None:
    """The trace of a graph module all of whose operators its graph names.

    Returns:
        None if the module has no such graph and must be traced.
    """
    if not isinstance(root, fx.GraphModule) or "forward" in vars(root):
        return None
    if not all(_is_operator(node, root, rules) for node in root.graph.nodes):
        return None
    if root.graph.python_code("self").src != root.code:
        return None  # edited since it was compiled: what runs is the code
    graph = fx.Graph()
    graph.output(graph.graph_copy(root.graph, {}))
    graph.set_codegen(copy.copy(root.graph._codegen))
    return as_trace(root, graph, path)


def as_trace(root: nn.Module, graph: fx.Graph, path: str = "") -> RecordedTrace:
    """A trace with one call, the root's own."""
    nodes = list(graph.nodes)
    arguments = {str(node.target): node for node in nodes if node.op == "placeholder"}
    args, kwargs = _as_called(graph, list(arguments.values()))
    call = Call("", root, None, arguments, args, kwargs, result=nodes[-1].args[0])
    contexts = any(Trait.SWITCHES in traits_of(operator_name(node)) for node in nodes)
    return RecordedTrace(
        root, path, graph, [call], dict.fromkeys(nodes, call), {call} if contexts else set()
    )


def recorded_values(
    graph: fx.Graph,
) -> tuple[dict[fx.Node, torch.Size], dict[fx.Node, torch.dtype], dict[fx.Node, int]]:
    """What the metadata of a graph tell: shapes, if all of them are fixed, types and ranks."""
    values = {node: node.meta.get("val") for node in graph.nodes}
    tensors = {node: value for node, value in values.items() if isinstance(value, Tensor)}
    sizes = [size for tensor in tensors.values() for size in tensor.shape]
    fixed = all(isinstance(size, int) for size in sizes)
    return (
        {node: torch.Size(tensor.shape) for node, tensor in tensors.items()} if fixed else {},
        {node: tensor.dtype for node, tensor in tensors.items()},
        {node: tensor.dim() for node, tensor in tensors.items()},
    )


def _as_called(graph: fx.Graph, inputs: list[fx.Node]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, as a caller packs them."""
    codegen = graph._codegen
    if not isinstance(codegen, _PyTreeCodeGen):
        return tuple(inputs), {}
    packed: Any = tree_unflatten(inputs, codegen.pytree_info.in_spec)
    if len(packed) == 2 and isinstance(packed[0], tuple) and isinstance(packed[1], dict):
        return packed[0], packed[1]
    return tuple(packed), {}


def _is_operator(node: fx.Node, root: nn.Module, rules: Rules) -> bool:
    """Whether a node runs one operator, not a module with code of its own."""
    if node.op != "call_module":
        return True
    module: Any = fetch(root, str(node.target))
    home = type(module).__module__
    if home == "torch.export._unlift":
        return True  # it checks the sizes of the inputs
    if "forward" in vars(module) or parametrize.is_parametrized(module):
        return False
    if rules.find(type(module)) is not None:
        return True
    containers = nn.Sequential | nn.ModuleList | nn.ModuleDict
    return home.startswith("torch.nn.modules") and not isinstance(module, containers)
