"""What parameters and buffers alone determine, told to code that asks for it while it is traced.

A size, a type or a number of rows is the same as long as the parameters are of that shape. A truth
or a number rests on what they hold: who asked is noted, since new code will not ask again.
"""

from __future__ import annotations

import cmath
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.capture.operator_traits import (
    CONSTANT_FACTORIES,
    Trait,
    is_in_place,
    is_of_torch,
    operator_name,
    reads_metadata,
    torch_name,
    traits,
)
from reparam.capture.structures import reached
from reparam.capture.trace import Call
from reparam.modules import (
    SILENT_WRITES,
    Widened,
    fetch,
    has_hooks,
    in_float64,
    is_plain,
    memory,
    run_function,
)

_ROUNDING = 1e-2

_OF_VALUES = {
    "shape", "ndim", "dtype", "device", "layout", "is_cuda", "is_sparse", "is_mps", "is_meta",
    "itemsize", "nbytes", "T", "mT", "H", "mH", "real", "imag", "data",
}  # fmt: skip
"""Attributes that are the same in every mode, and whoever trains."""

_OF_A_RUN = {
    "requires_grad", "is_leaf", "is_inference", "is_pinned", "is_shared", "is_set_to", "data_ptr",
    "storage", "untyped_storage", "storage_offset", "numpy", "retain_grad", "backward", "record",
}  # fmt: skip


class ConstantValues:
    """The values of a graph, while it is traced, that depend on parameters and buffers alone."""

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer
        self._tensors: dict[fx.Node, Tensor] = {}
        self._nodes: set[fx.Node] = set()
        self._writers: list[fx.Node] = []
        self._asked: list[tuple[nn.Module, set[fx.Node]]] = []
        self._values: dict[bool, dict[fx.Node, Any]] = {False: {}, True: {}}

    def read(self, node: fx.Node, tensor: Tensor) -> None:
        """Note which tensor a node reads."""
        if is_plain(tensor):
            self._tensors[node] = tensor
            self._nodes.add(node)

    def tensor(self, node: fx.Node) -> Tensor | None:
        """The parameter or buffer that a node reads, if it reads one."""
        return self._tensors.get(node)

    def created(self, node: fx.Node) -> None:
        """Note whether a node computes a constant, or may write to one."""
        operands = node.all_input_nodes
        if node.op not in ("call_function", "call_method", "call_module"):
            return
        constant = bool(operands) or node.target in CONSTANT_FACTORIES
        if constant and self._nodes.issuperset(operands) and _only_computes(node):
            self._nodes.add(node)
        elif operands and _may_write(node):
            self._writers.append(node)

    def knows(self, value: Any) -> bool:
        """Whether parameters and buffers alone determine a value, or the values in a tuple."""
        if isinstance(value, tuple | list):
            return all(map(self.knows, value))
        return isinstance(value, fx.Proxy) and value.node in self._nodes

    def held(self, value: Any) -> Any:
        """The value that a proxy stands for, or those in a tuple."""
        if isinstance(value, fx.Proxy):
            found = self._value(value.node, exactly=False)
            return found.detach().clone() if isinstance(found, Tensor) else found
        return type(value)(map(self.held, value))

    def number(self, node: fx.Node, kind: Callable[[Any], Any]) -> Any:
        """A value as a number of some kind; None if it is none, or rounding decides which."""
        try:
            runs, exact = (kind(self._value(node, exactly=exactly)) for exactly in (False, True))
        except Exception:  # whatever torch raises, or code of the user's
            return None
        if kind in (float, complex) and cmath.isclose(runs, exact, rel_tol=_ROUNDING):
            return self._told(node, exact, of_shape=False)
        return self._told(node, runs, of_shape=False) if runs == exact else None

    def size(self, node: fx.Node, ask: Callable[[Any], Any]) -> Any:
        """What of a value's shape is asked for; None if that is not known."""
        answer = self.seen(node, ask)
        return None if answer is None else self._told(node, answer, of_shape=True)

    def seen(self, node: fx.Node, ask: Callable[[Any], Any]) -> Any:
        """What somebody else than the model's code asks of a value; None if it is not known."""
        try:
            return ask(self._value(node, exactly=False))
        except Exception:  # whatever torch raises
            return None

    def asking(self) -> Call | None:
        """The call whose code runs; None for code that new code cannot stand for."""
        call: Call | None = self._tracer.innermost()
        return None if call is None or isinstance(call.module, fx.GraphModule) else call

    def _told(self, node: fx.Node, answer: Any, *, of_shape: bool) -> Any:
        """What code is told of a constant, of which is noted that it was."""
        call = self.asking()
        if call is None:
            return None
        call.asked |= self._sources(node, call.module, of_shape=of_shape)
        return answer

    def _sources(self, node: fx.Node, asking: nn.Module, *, of_shape: bool) -> set[str]:
        """The parameters whose numbers decide what a module's code is told of a value."""
        shaped: set[tuple[fx.Node, bool]] = set()
        pending = [(node, of_shape)]
        while pending:
            step = pending.pop()
            if step not in shaped:
                shaped.add(step)
                pending.extend(self._decided_by(*step))
        deciding = {each for each, of_shape in shaped if not of_shape}
        paths = {str(each.target) for each in deciding if each in self._tensors}
        if paths:
            self._asked.append((asking, deciding))
        return paths

    def _decided_by(self, node: fx.Node, of_shape: bool) -> Iterator[tuple[fx.Node, bool]]:
        """The operands that decide a value, or its shape, and whether by their shape alone."""
        dynamic = _has_dynamic_shape(node)
        for operand in node.all_input_nodes:
            value = self._value(operand, exactly=False)
            shaped = _is_of_tensors(value) and not dynamic and not _is_a_mask(value)
            yield operand, shaped and (of_shape or reads_metadata(node))

    def that_change(self, root: nn.Module, kept: Iterable[str]) -> set[int]:
        """The modules, by identity, whose code asked for what a later call may find changed."""
        if not self._asked:
            return set()
        graph = next(iter(self._asked[0][1])).graph
        changing = set(kept)
        written = {place for writer in self._writers for place in self._places(self._met(writer))}
        for node in graph.find_nodes(op="call_module"):
            module = fetch(root, str(node.target))
            if not is_of_torch(type(module)) or has_hooks(module):
                written.update(map(memory, (*module.parameters(), *module.buffers())))
        return {
            id(module)
            for module, nodes in self._asked
            if not written.isdisjoint(self._places(nodes))
            or not changing.isdisjoint(str(node.target) for node in nodes)
        }

    def _met(self, writer: fx.Node) -> set[fx.Node]:
        """The values whose memory an operator may write to."""
        return reached(
            _may_view(writer), lambda node: () if node in self._nodes else _may_view(node)
        )

    def _places(self, nodes: Iterable[fx.Node]) -> Iterator[int]:
        """The memory of the constants among some nodes."""
        for node in self._nodes.intersection(nodes):
            value = self.seen(node, lambda value: value)
            parts = value if isinstance(value, tuple | list) else (value,)
            yield from (memory(part) for part in parts if isinstance(part, Tensor))

    def _value(self, node: fx.Node, *, exactly: bool) -> Any:
        """The value of a constant as it is when the model runs, or computed in float64.

        Raises:
            KeyError: If it is no constant.
        """
        if node not in self._nodes:  # asked of every value: nothing above it is looked at
            raise KeyError(node)
        values = self._values[exactly]
        if node not in values:
            needed = reached([node], lambda each: () if each in values else each.all_input_nodes)
            if exactly:
                with Widened():
                    self._run(needed, values, in_float64)
            else:
                self._run(needed, values, lambda tensor: tensor)
        return values[node]

    def _run(
        self, nodes: set[fx.Node], values: dict[fx.Node, Any], chosen: Callable[[Any], Any]
    ) -> None:
        """Compute the values of some nodes, in order."""
        for node in sorted(nodes.difference(values)):
            if node in self._tensors:
                values[node] = chosen(self._tensors[node].detach())
            else:
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = run_function(node, args, kwargs)


def _only_computes(node: fx.Node) -> bool:
    """Whether an operator of constants does nothing but compute one."""
    name, known = torch_name(node), traits(node)
    if node.target is getattr:
        return node.args[1] in _OF_VALUES
    if node.op == "call_module" or _may_write(node) or name in _OF_A_RUN:
        return False
    if getattr(node.target, "__module__", None) == "math":
        return True
    method = node.op != "call_method" or hasattr(Tensor, name)
    random = Trait.RANDOM in known or _has_tag(name, torch.Tag.nondeterministic_seeded)
    return bool(name) and method and not random and Trait.REACHES_OUT not in known


def _may_write(node: fx.Node) -> bool:
    """Whether an operator may write to one of its operands."""
    if node.target is getattr or node.op == "call_module":
        return False  # what foreign modules write to is their own
    name = torch_name(node)
    unknown = not name and getattr(node.target, "__module__", None) != "math"
    given = any(node.kwargs.get(option) not in (None, False) for option in ("out", "inplace"))
    names = getattr(getattr(node.target, "__code__", None), "co_varnames", ())
    given = given or ("inplace" in names and any(value is True for value in node.args))
    return unknown or given or _writes_in_place(node) or name in SILENT_WRITES


def _writes_in_place(node: fx.Node) -> bool:
    """Whether an operator writes to its first operand, and to nothing else."""
    return is_in_place(torch_name(node)) or Trait.WRITES in traits(node)


def _may_view(node: fx.Node) -> list[fx.Node]:
    """The operands whose memory may be that of a value."""
    first = node.args[:1] if _writes_in_place(node) else ()
    return [each for each in first if isinstance(each, fx.Node)] or node.all_input_nodes


def _has_dynamic_shape(node: fx.Node) -> bool:
    """Whether the numbers in an operand decide the shape of an operator's value."""
    return _has_tag(operator_name(node), torch.Tag.dynamic_output_shape)


@cache
def _has_tag(name: str, tag: torch.Tag) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    overloads = [] if packet is None else packet.overloads()
    return any(tag in getattr(packet, overload).tags for overload in overloads)


def _is_of_tensors(value: Any) -> bool:
    parts = value if isinstance(value, tuple | list) else (value,)
    return all(isinstance(part, Tensor) for part in parts)


def _is_a_mask(value: Any) -> bool:
    """Whether a tensor taken as an index decides by its numbers how much it takes."""
    return isinstance(value, Tensor) and value.dtype in (torch.bool, torch.uint8)
