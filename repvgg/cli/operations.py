"""Lists the operations that a network executes, for the demo's picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

_KINDS = {
    "aten::conv2d": "convolution",
    "aten::batch_norm": "batch norm",
    "aten::add": "addition",
    "aten::relu": "ReLU",
    "aten::linear": "linear",
}

INPUT = -1
"""Stands for the network's input among the inputs of an operation."""


@dataclass(frozen=True)
class Operation:
    """One operation of a network.

    Attributes:
        kind: "convolution", "batch norm", "addition", "ReLU", "linear" or "other".
        label: A short name for a picture.
        module: Path of the innermost module that executes it.
        inputs: Where its inputs come from: places in the list of operations, or `INPUT`.
    """

    kind: str
    label: str
    module: str
    inputs: tuple[int, ...]


def list_operations(model: nn.Module, images: Tensor) -> list[Operation]:
    """Lists what `model(images)` executes, in order."""
    program = torch.export.export(model, (images,))
    places: dict[fx.Node, int] = {}
    operations: list[Operation] = []
    for node in program.graph.nodes:
        if node.name in program.graph_signature.user_inputs:
            places[node] = INPUT
        elif node.op == "call_function":
            name = node.target._schema.name
            modules = [path for path, _ in node.meta["nn_module_stack"].values()]
            inputs = tuple(places[value] for value in node.all_input_nodes if value in places)
            places[node] = len(operations)
            operations.append(
                Operation(_KINDS.get(name, "other"), _label(node, name), modules[-1], inputs)
            )
    return operations


def operations_inside(operations: Sequence[Operation], module: str) -> list[Operation]:
    """Selects the operations of one module; what comes from outside becomes `INPUT`."""
    chosen = [
        place
        for place, operation in enumerate(operations)
        if f"{operation.module}.".startswith(f"{module}.")
    ]
    renumbered = {place: index for index, place in enumerate(chosen)}
    return [
        replace(
            operations[place],
            inputs=tuple(renumbered.get(value, INPUT) for value in operations[place].inputs),
        )
        for place in chosen
    ]


def count_kinds(operations: Iterable[Operation]) -> Counter[str]:
    """Counts the operations of each kind."""
    return Counter(operation.kind for operation in operations)


def _label(node: fx.Node, name: str) -> str:
    match name:
        case "aten::conv2d":
            height, width = node.all_input_nodes[1].meta["val"].shape[-2:]
            return f"conv {height}×{width}"
        case "aten::batch_norm":
            return "batch norm"
        case "aten::add":
            return "+"
        case "aten::relu":
            return "ReLU"
        case _:
            return name.removeprefix("aten::").replace("_", " ")
