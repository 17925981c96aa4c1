"""What a forward keeps: in a layer what it computes of weights alone, or anything as an attribute.

Whoever reads such a weight from then on reads what it was computed as. What it held before nobody
may have read: an earlier call would have left that there. Nor does an attribute tell one call from
another, if a second run, which finds it there, does the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from reparam.capture.stand_ins.constant_values import ConstantValues
from reparam.capture.structures import without_proxies
from reparam.capture.trace import Call
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


class SetAttributes:
    """The attributes of a model's modules that a run of its forward has set.

    To constants, or to values of that run: what a second run sets again, new code can set, too.

    Args:
        before: What the attributes of each module held before that run.
        constants: What parameters alone determine.
        result: What the run returned.
    """

    def __init__(
        self,
        before: Mapping[nn.Module, dict[str, Any]],
        constants: ConstantValues,
        result: Any,
    ) -> None:
        self._constants = constants
        changed = [
            (module, name, value)
            for module in before
            for name, value in vars(module).items()
            if name not in before[module] or value is not before[module][name]
        ]
        self._before = before
        self._set = [
            entry for entry in changed if constants.knows(entry[2]) or _is_of_values(entry[2])
        ]
        self._renewed: set[tuple[int, str]] = set()
        self._left_by_first: list[fx.Node] = []
        self.result = result, [value for _, _, value in self._set]
        """What the run returned and set, to be compared with what the next one does."""

    def unchanged_by(self, again: Callable[[], Any]) -> Callable[[], Any]:
        """Another run, after which the attributes hold what they held if it set them, too."""

        def run() -> Any:
            found = {}
            for module, name, value in self._set:
                left = value if self._constants.knows(value) else self._left(value)
                found[id(module), name] = vars(module)[name] = left
            result = again()
            for node in self._left_by_first:
                if not node.users:
                    node.graph.erase_node(node)
            kept = []
            for module, name, value in self._set:
                new = vars(module).get(name)
                constant = self._constants.knows(value)
                if new is not found[id(module), name] and (
                    self._constants.knows(new) if constant else _is_of_values(new)
                ):
                    self._renewed.add((id(module), name))
                    new, vars(module)[name] = value if constant else new, value
                elif new is found[id(module), name]:
                    new = vars(module)[name] = value
                kept.append(new)
            return result, kept

        return run

    def _left(self, value: Any) -> Any:
        """What the first run leaves in an attribute: values that nobody knows in the next one."""
        if isinstance(value, fx.Proxy) and not self._constants.knows(value):
            left: fx.Proxy = value.tracer.create_proxy("call_function", _left_by_a_run, (), {})
            self._left_by_first.append(left.node)
            return left
        if isinstance(value, dict):
            return {key: self._left(entry) for key, entry in value.items()}
        return type(value)(map(self._left, value)) if isinstance(value, tuple | list) else value

    def put_back(
        self, settled: Collection[int], calls: Sequence[Call]
    ) -> list[tuple[nn.Module, str, Any]]:
        """Let the attributes of settled modules hold what they held before, if each run sets them.

        What a later run finds and reads is kept of an earlier one: it stays. So is what several
        calls of a module set to values of theirs.

        Returns:
            These modules, the names of the attributes, and the constants that a run leaves there.
        """
        times = Counter(id(call.module) for call in calls)
        only = {id(call.module): call for call in calls if times[id(call.module)] == 1}
        left: list[tuple[nn.Module, str, Any]] = []
        for module, name, value in self._set:
            constant = self._constants.knows(value)
            call = only.get(id(module))
            renewed = id(module) in settled and (id(module), name) in self._renewed
            if not renewed or (call is None and not constant):
                continue
            if name in self._before[module]:
                vars(module)[name] = self._before[module][name]
            else:
                del vars(module)[name]
            if constant:
                left.append((module, name, self._constants.held(value)))
            elif call is not None:
                call.keeps[name] = without_proxies(value)
        return left


def _left_by_a_run() -> Any:
    """A value that an earlier run has left in an attribute."""
    raise NotImplementedError


def _is_of_values(structure: Any) -> bool:
    """Whether a value is one of the run, or plain containers of such and of constants."""
    leaves = tree_leaves(structure, is_leaf=lambda leaf: type(leaf) not in (tuple, list, dict))
    plain = all(
        leaf is None or isinstance(leaf, fx.Proxy | bool | int | float | str) for leaf in leaves
    )
    return plain and any(isinstance(leaf, fx.Proxy) for leaf in leaves)


def _is_like(new: Any, tensor: Tensor) -> bool:
    """Whether a value may take the place of a weight: it has its shape, its type and its device."""
    if not isinstance(new, Tensor):
        return False
    return (new.shape, new.dtype, new.device) == (tensor.shape, tensor.dtype, tensor.device)
