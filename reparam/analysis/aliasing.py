"""Which values of a graph share memory, and which operators write to it.

Everything unknown is taken at its worst: an unknown operator may return a view of its arguments
and may write to them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from math import inf
from typing import NamedTuple

from torch import Tensor, fx, nn

from reparam.analysis.effects import Effects, fills, makes_tensor, writes_to_itself
from reparam.capture import reached, reads_shape_only
from reparam.errors import Refusal
from reparam.modules import fetch, memory
from reparam.rules import Rules


class _Uses(NamedTuple):
    """How the names of one place in memory are used.

    Args:
        since: Where each name is given, in order.
        latest: The last use of any name up to this one; infinite if that is never known.
        last_made: Where the last name is given that is not made of another one.
    """

    since: list[int]
    latest: list[float]
    last_made: int

    def older(self, position: int) -> float:
        """The last use of any name that is older than a position."""
        count = bisect_left(self.since, position)
        return self.latest[count - 1] if count else -1


@dataclass(frozen=True, eq=False)
class Memory:
    """The memory of the values of one graph.

    Each place in memory is called by the node whose value was the first to lie there. A value may
    lie at several, what an unknown function returns at those of all that it was given. Two values
    may share memory if they may lie at the same place.

    Args:
        order: Position of each node.
        places: For each node the places that its value may lie at.
        names: The values that may lie at a place, in order.
        writers: The nodes that may write to a place.
        written: What each node may write to.
        seen_as: For each node that may return what it read, or a view of it, what that is.
        mixed: Places of things that code may have put into each other.
        unsteady: Memory of parameters and buffers that a forward may write to.
        unread: Nodes without effect whose value nobody reads.
        held: Values that a module, or a hook, may keep.
    """

    order: Mapping[fx.Node, int]
    places: Mapping[fx.Node, frozenset[fx.Node]]
    names: Mapping[fx.Node, list[fx.Node]]
    writers: Mapping[fx.Node, list[fx.Node]]
    written: Mapping[fx.Node, tuple[fx.Node, ...]]
    seen_as: Mapping[fx.Node, Sequence[fx.Node]]
    mixed: Set[fx.Node]
    unsteady: set[int]
    unread: Collection[fx.Node]
    held: Collection[fx.Node]

    def is_written(self, module: nn.Module) -> bool:
        """Whether a forward may write to the parameters or buffers of a module."""
        return bool(self.unsteady) and not self.unsteady.isdisjoint(_memory_of(module))

    def lasts(self, node: fx.Node) -> bool:
        """Whether somebody may look at a value when the graph has run."""
        return node.op in ("placeholder", "get_attr") or node in self.held

    def may_share(self, first: fx.Node, second: fx.Node) -> bool:
        """Whether two values may share memory."""
        return not self.places[first].isdisjoint(self.places[second])

    def alias_class(self, node: fx.Node) -> list[fx.Node]:
        """All values that may share memory with this one."""
        names = {name for place in self.places[node] for name in self.names[place]}
        return sorted(names, key=self.order.__getitem__)

    def write_between(
        self, node: fx.Node, first: int, last: int, ignoring: Collection[fx.Node] = ()
    ) -> bool:
        """Whether a value's memory may be written after position ``first``, up to ``last``."""
        order = self.order.__getitem__
        for place in self.places[node]:
            writers = self.writers.get(place, [])
            start = bisect_right(writers, first, key=order)
            for writer in islice(writers, start, None):
                if order(writer) > last:
                    break
                if writer not in ignoring:
                    return True
        return False

    def shows_copy(self, node: fx.Node, ignoring: Collection[fx.Node] = ()) -> bool:
        """Whether somebody sees if a value is a view of what it may share memory with, or a copy.

        From then on it may be written to by the name of one, and read by a name of the other.
        """
        if not self.seen_as.get(node) or self._is_newest(node):
            return False
        own = reached(
            [node], lambda name: (n for n in name.users if name in self.seen_as.get(n, ()))
        )
        names = self.alias_class(node)
        if not self.mixed.isdisjoint(self.places[node]):
            return self.tells_apart(names, names, self.order[node], ignoring)
        others = [
            name
            for name in names
            if name not in own or (name is not node and self._is_view_of_others(name, node, own))
        ]
        return self.tells_apart(own, others, self.order[node], ignoring)

    def _is_newest(self, node: fx.Node) -> bool:
        """Whether what is named after a value is made of it, and nobody uses older names any more.

        It tells quickly what `shows_copy` would find out of all names: they may be thousands.
        """
        position = self.order[node]
        return self.mixed.isdisjoint(self.places[node]) and not any(
            self._uses[place].older(position) > position or self._uses[place].last_made > position
            for place in self.places[node]
        )

    @cached_property
    def _uses(self) -> dict[fx.Node, _Uses]:
        """How the names of each place are used."""
        uses: dict[fx.Node, _Uses] = {}
        for place, names in self.names.items():
            since, last_made = [self.order[name] for name in names], -1
            latest: list[float] = []
            for name in names:
                used = (
                    inf
                    if self.lasts(name)
                    else max((self.order[user] for user in name.users), default=-1)
                )
                latest.append(max(used, latest[-1]) if latest else used)
                if not any(place in self.places[source] for source in self.seen_as.get(name, ())):
                    last_made = self.order[name]
            uses[place] = _Uses(since, latest, last_made)
        return uses

    def _is_view_of_others(self, name: fx.Node, node: fx.Node, own: Set[fx.Node]) -> bool:
        """Whether a value may share memory with another one, and not by what was made of it."""
        sources = (source for source in self.seen_as[name] if source not in own)
        return any(self.may_share(source, node) for source in sources)

    def tells_apart(
        self,
        first: Collection[fx.Node],
        second: Collection[fx.Node],
        since: int,
        ignoring: Collection[fx.Node] = (),
    ) -> bool:
        """Whether somebody sees, after a position, if two sets of names are of the same memory."""
        return self._shows_write(first, second, since, ignoring) or self._shows_write(
            second, first, since, ignoring
        )

    def _shows_write(
        self,
        names: Iterable[fx.Node],
        others: Iterable[fx.Node],
        since: int,
        ignoring: Collection[fx.Node],
    ) -> bool:
        """Whether one of some names is written to, and one of the others read then or later."""
        writes = [
            self.order[user]
            for name in names
            for user in name.users
            if name in self.written.get(user, ()) and user not in ignoring
        ]
        first = min((write for write in writes if write > since), default=None)
        return first is not None and any(self._is_read(n, first, ignoring) for n in others)

    def _is_read(self, name: fx.Node, since: int, ignoring: Collection[fx.Node]) -> bool:
        """Whether somebody may look at a value at some position, or later."""
        if name.op in ("placeholder", "get_attr") or name in self.held:
            return True
        return any(
            self.order[user] >= since and not reads_shape_only(user, name)
            for user in name.users
            if user not in self.unread and user not in ignoring
        )

    def overwrites(self, node: fx.Node) -> Refusal | None:
        """Why an operator in place is none that a form could stand for: somebody sees the write.

        It is one only if its own value is read, and what it wrote to by no other name any more.
        """
        if all(user in self.unread for user in node.users):
            return Refusal("it writes in place, and nobody reads the result")
        position = self.order[node]
        for target in self.written[node]:
            if all(self._uses[place].older(position) <= position for place in self.places[target]):
                continue
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
    tensors: Collection[fx.Node],
    rules: Rules,
) -> Memory:
    """Find which values of a graph share memory, and who writes to it.

    Some values are known to be tensors, and no lists or objects that hold some.
    """
    seen_as = {
        # An operator in place returns what it wrote to, and nothing of its other operands.
        node: [n for n in effect.writes or node.all_input_nodes if n not in numbers]
        for node, effect in effects.items()
        if effect.aliases and node.op != "output" and node not in numbers
    }
    places, mixed = _places(root, effects, seen_as, tensors)
    names: dict[fx.Node, list[fx.Node]] = {}
    writers: dict[fx.Node, list[fx.Node]] = {}
    for node, effect in effects.items():
        for place in places[node]:
            names.setdefault(place, []).append(node)
        for place in frozenset[fx.Node]().union(*(places[target] for target in effect.writes)):
            writers.setdefault(place, []).append(node)
    return Memory(
        order={node: position for position, node in enumerate(effects)},
        places=places,
        names=names,
        writers=writers,
        written={node: effect.writes for node, effect in effects.items() if effect.writes},
        seen_as=seen_as,
        mixed=mixed,
        unsteady=_unsteady(root, places, writers, rules),
        unread=unread,
        held=held,
    )


def _unsteady(
    root: nn.Module,
    places: Mapping[fx.Node, frozenset[fx.Node]],
    writers: Mapping[fx.Node, list[fx.Node]],
    rules: Rules,
) -> set[int]:
    """Memory of parameters and buffers that a forward may write to."""
    unsteady: set[int] = set()
    for node in places:
        if node.op == "get_attr" and not writers.keys().isdisjoint(places[node]):
            value = fetch(root, str(node.target))
            unsteady |= {memory(value)} if isinstance(value, Tensor) else set()
        elif node.op == "call_module":
            module = fetch(root, str(node.target))
            if _is_foreign(module, rules) or writes_to_itself(module):
                unsteady |= _memory_of(module)
    return unsteady


def _places(
    root: nn.Module,
    effects: Mapping[fx.Node, Effects],
    seen_as: Mapping[fx.Node, Sequence[fx.Node]],
    known: Collection[fx.Node],
) -> tuple[dict[fx.Node, frozenset[fx.Node]], set[fx.Node]]:
    """For each node the places that its value may lie at, and which of them are mixed.

    Unknown code may put what it is given into a list or an object that it is given, but it makes
    no tensor a view of another one.
    """
    one: dict[fx.Node, fx.Node] = {}

    def find(place: fx.Node) -> fx.Node:
        while (other := one.get(place, place)) is not place:
            one[place] = one.get(other, other)
            place = other
        return place

    places: dict[fx.Node, frozenset[fx.Node]] = {}
    tensors = set(known)
    mixed: set[fx.Node] = set()
    first_read: dict[int, fx.Node] = {}
    for node, effect in effects.items():
        value = fetch(root, str(node.target)) if node.op == "get_attr" else None
        if isinstance(value, Tensor):
            places[node] = frozenset((first_read.setdefault(memory(value), node),))
        else:
            seen = (places[source] for source in seen_as.get(node, ()))
            places[node] = frozenset[fx.Node]().union(*seen) or frozenset((node,))
        if isinstance(value, Tensor) or makes_tensor(node, root, tensors):
            tensors.add(node)
        if fills(node, effect, tensors):
            together = [*places[node], *(p for n in node.all_input_nodes for p in places[n])]
            mixed.update(together)
            one.update((find(place), find(node)) for place in map(find, together))
    found = {node: frozenset(map(find, lying)) for node, lying in places.items()}
    return found, set(map(find, mixed))


def _is_foreign(module: nn.Module, rules: Rules) -> bool:
    """Whether the code of a module may do anything with its parameters and buffers."""
    ours = type(module).__module__.startswith("torch.nn.modules")
    return not ours and rules.find(type(module)) is None


def _memory_of(module: nn.Module) -> set[int]:
    return {memory(tensor) for tensor in (*module.parameters(), *module.buffers())}
