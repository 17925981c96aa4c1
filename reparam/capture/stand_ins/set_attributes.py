"""What a forward keeps in attributes of its modules, while it is traced.

An attribute does not tell one call from another if a second run, which finds what the first one
left there, does the same and sets it again: to a constant, or to a value of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from torch import fx, nn
from torch.utils._pytree import tree_leaves

from reparam.capture.stand_ins.constant_values import ConstantValues
from reparam.capture.structures import without_proxies
from reparam.capture.trace import Call
from reparam.errors import UntraceableError


class _Attribute(NamedTuple):
    """An attribute that a run has set, to a constant or to something of its values."""

    module: nn.Module
    name: str
    value: Any
    constant: bool


class SetAttributes:
    """The attributes of a model's modules that a run of its forward has set.

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
        self._before = before
        self._constants = constants
        self._set = [
            _Attribute(module, name, value, constants.knows(value))
            for module, held in before.items()
            for name, value in vars(module).items()
            if name not in held or value is not held[name]
            if constants.knows(value) or _is_of_values(value)
        ]
        self._renewed: set[tuple[int, str]] = set()
        self._left_by_first: list[fx.Node] = []
        self.result = result, [attribute.value for attribute in self._set]
        """What the run returned and set, to be compared with what the next one does."""

    def unchanged_by(self, again: Callable[[], Any]) -> Callable[[], Any]:
        """Another run, after which the attributes hold what they held if it set them, too."""

        def run() -> Any:
            found = [one.value if one.constant else self._left(one.value) for one in self._set]
            pairs = list(zip(self._set, found, strict=True))
            for attribute, left in pairs:
                vars(attribute.module)[attribute.name] = left
            result = again()
            for node in self._left_by_first:
                if not node.users:
                    node.graph.erase_node(node)
            return result, [self._settle(attribute, left) for attribute, left in pairs]

        return run

    def _settle(self, attribute: _Attribute, left: Any) -> Any:
        """What a second run has set an attribute to, which gets back what the first one set."""
        module, name, value, constant = attribute
        new = vars(module).get(name)
        alike = self._constants.knows(new) if constant else _is_of_values(new)
        if new is not left and not alike:
            return new  # it is no longer of this kind, and stays
        vars(module)[name] = value
        if new is left:
            return value
        self._renewed.add((id(module), name))
        return value if constant else new

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
        for module, name, value, constant in self._set:
            call = only.get(id(module))
            if id(module) not in settled or (id(module), name) not in self._renewed:
                continue
            if constant:
                left.append((module, name, self._constants.held(value)))
            elif call is not None:
                call.keeps[name] = without_proxies(value)
            else:
                continue
            if name in self._before[module]:
                vars(module)[name] = self._before[module][name]
            else:
                del vars(module)[name]
        return left


def _left_by_a_run() -> Any:
    """A value that an earlier run has left in an attribute: no run can tell it."""
    raise UntraceableError("what an earlier call has left in an attribute is not known")


def _is_of_values(structure: Any) -> bool:
    """Whether a value is one of the run, or plain containers of such and of constants."""
    leaves = tree_leaves(structure, is_leaf=lambda leaf: type(leaf) not in (tuple, list, dict))
    plain = all(
        leaf is None or isinstance(leaf, fx.Proxy | bool | int | float | str) for leaf in leaves
    )
    return plain and any(isinstance(leaf, fx.Proxy) for leaf in leaves)
