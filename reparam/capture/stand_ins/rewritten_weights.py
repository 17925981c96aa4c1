"""What a forward computes of weights alone and keeps in a layer.

Whoever reads such a weight from then on reads what it was computed as. What it held before nobody
may have read: an earlier call would have left that there.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from reparam.capture.stand_ins.constant_values import ConstantValues
from reparam.modules import fetch, memory, own_tensors


class RewrittenWeights:
    """The weights of a model that its code has replaced so far, while it is traced."""

    def __init__(self, constants: ConstantValues) -> None:
        self._constants = constants
        self._values: dict[int, fx.Proxy] = {}
        self._writers: dict[str, tuple[Tensor, nn.Module]] = {}

    def put(self, weight: fx.Proxy, value: Any) -> bool:
        """Note that code replaces a weight, if it does by a constant that is like it."""
        tensor, call = self._constants.tensor(weight.node), self._constants.asking()
        if tensor is None or call is None or not isinstance(value, fx.Proxy):
            return False
        same = self._constants.size(value.node, lambda new: _is_like(new, tensor))
        if same:
            self._values[id(tensor)] = value
            self._writers[str(weight.node.target)] = tensor, call.module
        return bool(same)

    def forget(self) -> None:
        """Let every weight be what it was, for another run."""
        self._values.clear()

    def current(self, tensor: Tensor) -> fx.Proxy | None:
        """What a weight was replaced by."""
        return self._values.get(id(tensor))

    def are_in(self, module: nn.Module) -> bool:
        """Whether a module holds such a weight itself."""
        return any(id(tensor) in self._values for tensor in own_tensors(module).values())

    def read_before(self, graph: fx.Graph, root: nn.Module) -> set[int]:
        """The modules, by identity, that replaced a weight which somebody else has read."""
        read: set[int] = set()
        for node in graph.nodes:
            value = (
                fetch(root, str(node.target)) if node.op in ("get_attr", "call_module") else None
            )
            if isinstance(value, nn.Module):
                read.update(map(memory, (*value.parameters(), *value.buffers())))
            elif isinstance(value, Tensor) and node.users:
                read.add(memory(value))
        return {id(module) for tensor, module in self._writers.values() if memory(tensor) in read}


def _is_like(new: Any, tensor: Tensor) -> bool:
    """Whether a value may take the place of a weight: it has its shape, its type and its device."""
    if not isinstance(new, Tensor):
        return False
    return (new.shape, new.dtype, new.device) == (tensor.shape, tensor.dtype, tensor.device)
