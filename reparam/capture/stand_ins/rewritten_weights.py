"""What a forward computes of weights alone and keeps: in a layer, or as an attribute.

Whoever reads such a weight from then on reads what it was computed as. What it held before nobody
may have read: an earlier call would have left that there. Nor does an attribute tell one call from
another, if a second run, which finds it there, does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
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


class ConstantAttributes:
    """The attributes of a model's modules into which a run of its forward put constants.

    Args:
        before: What the attributes of each module held before that run.
        constants: What parameters alone determine.
    """

    def __init__(
        self, before: Mapping[nn.Module, dict[str, Any]], constants: ConstantValues
    ) -> None:
        self._kept = [
            (vars(module), name, module, value, before[module][name])
            for module in before
            for name, value in vars(module).items()
            if name in before[module]
            and value is not before[module][name]
            and constants.knows(value)
        ]
        self._constants = constants
        self._renewed: set[tuple[int, str]] = set()

    def unchanged_by(self, again: Callable[[], Any]) -> Callable[[], Any]:
        """Another run, after which the attributes hold what they held if it put constants there."""

        def run() -> Any:
            result = again()
            for attributes, name, module, value, _ in self._kept:
                new = attributes.get(name)
                if new is not value and self._constants.knows(new):
                    attributes[name] = value
                    self._renewed.add((id(module), name))
            return result

        return run

    def put_back(self, settled: Collection[int]) -> list[tuple[nn.Module, str, Any]]:
        """Let the attributes of settled modules hold what they held before, if each run sets them.

        What a later run finds and reads is kept of an earlier one: it stays.

        Returns:
            These modules, the names of the attributes, and what a run leaves there.
        """
        kept: list[tuple[nn.Module, str, Any]] = []
        for attributes, name, module, value, held in self._kept:
            if id(module) in settled and (id(module), name) in self._renewed:
                attributes[name] = held
                kept.append((module, name, self._constants.held(value)))
        return kept


def _is_like(new: Any, tensor: Tensor) -> bool:
    """Whether a value may take the place of a weight: it has its shape, its type and its device."""
    if not isinstance(new, Tensor):
        return False
    return (new.shape, new.dtype, new.device) == (tensor.shape, tensor.dtype, tensor.device)
