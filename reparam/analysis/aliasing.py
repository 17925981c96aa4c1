"""Which values of a graph share memory, and which operators write to it.

Everything unknown is taken at its worst: an unknown operator may return a view of its arguments
and may write to them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn

from reparam.analysis.effects import Effects, writes_to_itself
from reparam.errors import Refusal
from reparam.modules import fetch, memory
from reparam.rules import Rules


@dataclass(frozen=True, eq=False)
class Memory:
    """The memory of the values of one graph.

    Args:
        order: Position of each node.
        storage: For each node one that stands for all values that may share memory with it.
        members: These values, in order, by what stands for them.
        writers: The nodes that may write to this memory, by what stands for it.
        written: What each node may write to.
        unsteady: Memory of parameters and buffers that a forward may write to.
        unread: Nodes without effect whose value nobody reads.
        held: Values that a module, or a hook, may keep.
    """

    order: Mapping[fx.Node, int]
    storage: Mapping[fx.Node, fx.Node]
    members: Mapping[fx.Node, list[fx.Node]]
    writers: Mapping[fx.Node, list[fx.Node]]
    written: Mapping[fx.Node, tuple[fx.Node, ...]]
    unsteady: set[int]
    unread: Collection[fx.Node]
    held: Collection[fx.Node]

    def is_written(self, module: nn.Module) -> bool:
        """Whether a forward may write to the parameters or buffers of a module."""
        return bool(self.unsteady) and not self.unsteady.isdisjoint(_memory_of(module))

    def alias_class(self, node: fx.Node) -> list[fx.Node]:
        """All values that may share memory with this one."""
        return self.members.get(self.storage.get(node, node), [node])

    def write_between(
        self, node: fx.Node, first: int, last: int, ignoring: Collection[fx.Node] = ()
    ) -> bool:
        """Whether a value's memory may be written after position ``first``, up to ``last``."""
        return any(
            first < self.order[writer] <= last and writer not in ignoring
            for writer in self.writers.get(self.storage.get(node, node), ())
        )

    def overwrites(self, node: fx.Node) -> Refusal | None:
        """Why an operator in place is none that a form could stand for: somebody sees the write.

        It is one only if its own value is read, and what it wrote to by no other name any more.
        """
        if all(user in self.unread for user in node.users):
            return Refusal("it writes in place, and nobody reads the result")
        position = self.order[node]
        for target in self.written[node]:
            for member in self.alias_class(target):
                if self.order[member] >= position:
                    continue
                if member.op in ("placeholder", "get_attr"):
                    return Refusal("it writes to the model's input or to a parameter in place")
                if member in self.held:
                    return Refusal("it writes in place to a value that a module may keep")
                readers = (user for user in member.users if user not in self.unread)
                if any(self.order[user] > position for user in readers):
                    return Refusal("it writes in place to a value that is read later")
        return None


def find_memory(
    root: nn.Module,
    effects: Mapping[fx.Node, Effects],
    numbers: Collection[fx.Node],
    unread: Collection[fx.Node],
    held: Collection[fx.Node],
    rules: Rules,
) -> Memory:
    """Find which values of a graph share memory, and who writes to it."""
    storage = _storage(root, effects, numbers)
    members: dict[fx.Node, list[fx.Node]] = {}
    writers: dict[fx.Node, list[fx.Node]] = {}
    for node, effect in effects.items():
        members.setdefault(storage[node], []).append(node)
        for target in effect.writes:
            writers.setdefault(storage[target], []).append(node)
    unsteady: set[int] = set()
    for node in effects:
        if node.op == "get_attr" and storage[node] in writers:
            value = fetch(root, str(node.target))
            unsteady |= {memory(value)} if isinstance(value, Tensor) else set()
        elif node.op == "call_module":
            module = fetch(root, str(node.target))
            if _is_foreign(module, rules) or writes_to_itself(module):
                unsteady |= _memory_of(module)
    return Memory(
        order={node: position for position, node in enumerate(effects)},
        storage=storage,
        members=members,
        writers=writers,
        written={node: effect.writes for node, effect in effects.items() if effect.writes},
        unsteady=unsteady,
        unread=unread,
        held=held,
    )


def _storage(
    root: nn.Module, effects: Mapping[fx.Node, Effects], numbers: Collection[fx.Node]
) -> dict[fx.Node, fx.Node]:
    """For each node one that stands for all values that may share memory with it."""
    parent: dict[fx.Node, fx.Node] = {}

    def find(node: fx.Node) -> fx.Node:
        while (above := parent.get(node, node)) is not node:
            parent[node] = parent.get(above, above)
            node = above
        return node

    for node, effect in effects.items():
        if effect.aliases and node.op != "output" and node not in numbers:
            # An operator in place returns what it wrote to, and nothing of its other operands.
            for argument in effect.writes or node.all_input_nodes:
                if argument not in numbers:
                    parent[find(argument)] = find(node)
    first_read: dict[int, fx.Node] = {}
    for node in effects:
        if node.op == "get_attr":
            value = fetch(root, str(node.target))
            if isinstance(value, Tensor):
                parent[find(node)] = find(first_read.setdefault(memory(value), node))
    return {node: find(node) for node in effects}


def _is_foreign(module: nn.Module, rules: Rules) -> bool:
    """Whether the code of a module may do anything with its parameters and buffers."""
    ours = type(module).__module__.startswith("torch.nn.modules")
    return not ours and rules.find(type(module)) is None


def _memory_of(module: nn.Module) -> set[int]:
    return {memory(tensor) for tensor in (*module.parameters(), *module.buffers())}
