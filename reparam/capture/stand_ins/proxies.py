"""The values that tracing sends through a model's code in place of tensors.

What a proxy cannot know it must not pretend to know. It answers where the answer is certain, and
refuses where the code would otherwise take a wrong turn.
"""

from __future__ import annotations

import dis
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor, fx

from reparam.capture.item_assignment import assign
from reparam.capture.operator_traits import Trait, traits
from reparam.capture.structures import proxies_in, reached

_NEVER_ASKS = (
    "torch.fx", "torch._", "torch.utils", "torch.overrides", "torch.nn.modules.module",
    "torch.nn.parameter", "reparam.",
)  # fmt: skip

_ASK_FOR_OTHERS = {"abc", "functools", "torch.jit", "torch._jit_internal", "torch.nn.parameter"}
"""Modules whose ``isinstance`` and dispatch ask on behalf of whoever calls them."""


_MAY_BE_NONE = {"grad", "grad_fn", "name", "_base", "_grad", "_grad_fn", "_backward_hooks"}
"""Attributes of a tensor that are there or not, as the mode or an earlier call decides."""


_SIZES = {"shape", "ndim", "dim", "size", "numel", "nelement"}


class _Reserved:
    """What Python asks of a value by itself, and what code assigns to it: answered, or refused.

    Python answers with exceptions that a model's code may catch, and go on as if it knew better.
    """

    @property
    def __class__(self) -> type:
        """What patterns and dispatch take a value for.

        Only where Python's own code asks: torch's compiled functions would take it for a tensor.
        """
        frame = sys._getframe(1)
        if not user_asks(frame) or not _reads_attribute(frame):
            return type(self)
        tracer: Any = vars(self)["tracer"]
        kind: type = tracer.kinds.class_of(self)
        return kind

    @__class__.setter
    def __class__(self, kind: type) -> None:
        self._refuse("get another class")

    def _refuse(self, what: str, frame: FrameType | None = None) -> NoReturn:
        tracer: Any = vars(self)["tracer"]
        tracer.doubts.refuse(frame)
        raise UnknownValueError(f"a value that only a run of the model tells cannot {what}")

    def __setattr__(self, name: str, value: Any) -> None:
        if user_asks(sys._getframe(1)):
            tracer: Any = vars(self)["tracer"]
            if name == "data" and tracer.rewritten.put(self, value):
                return
            self._refuse(f"get another {name}")
        super().__setattr__(name, value)

    def __index__(self) -> int:
        number = self._number(operator.index)
        if number is None:
            self._refuse("be an index", sys._getframe(1))
        return int(number)

    def __int__(self) -> int:
        return int(self._as_number(int))

    def __float__(self) -> float:
        return float(self._as_number(float))

    def __complex__(self) -> complex:
        return complex(self._as_number(complex))

    def _as_number(self, kind: Callable[[Any], Any]) -> Any:
        number = self._number(kind)
        if number is None:
            self._refuse("become a number")
        return number

    def _number(self, kind: Callable[[Any], Any]) -> Any:
        """The number that a value is, if parameters alone tell; else None."""
        tracer: Any = vars(self)["tracer"]
        proxy: Any = self
        return tracer.constants.number(proxy.node, kind)

    def __len__(self) -> int:
        proxy: Any = self
        length = _length(proxy)
        if length is not None:
            return length
        tracer: Any = vars(self)["tracer"]
        decided = tracer.decisions.length(proxy)
        if decided is not None:
            return int(decided)
        tracer.doubts.refuse()
        return fx.Proxy.__len__(proxy)

    def __hash__(self) -> int:
        if user_asks(sys._getframe(1)):
            self._refuse("be the key of a dictionary")
        return id(self)

    def __iter__(self) -> Iterator[fx.Proxy]:
        return _unpack(self, sys._getframe(1))

    def __str__(self) -> str:
        return self._written(sys._getframe(1))

    def __format__(self, format_spec: str) -> str:
        return self._written(sys._getframe(1))

    def _written(self, frame: FrameType) -> str:
        tracer: Any = vars(self)["tracer"]
        if vars(self).get("attr") == "device" and tracer.device is not None:
            return str(tracer.device)
        # The message of an assertion is made although nobody reads it.
        if user_asks(frame) and "_assert" not in frame.f_code.co_names:
            self._refuse("be written into a text")
        return repr(self)


class UnknownValueError(fx.proxy.TraceError, TypeError):
    """Code asks for what only a run of the model tells."""


class Proxy(_Reserved, fx.Proxy):
    """A value of the graph."""

    def __getattr__(self, k: str) -> Any:
        frame = sys._getframe(1)
        if k in _SIZES and (size := self._known_size(k)) is not None:
            return size
        if not hasattr(Tensor, k):
            self._absent(k, frame)
        if user_asks(frame):
            if k in _MAY_BE_NONE:
                self._refuse(f"tell its {k}")  # code compares it with None, unseen
            if not _reads_attribute(frame):  # it asks whether there is one
                tracer: Any = self.tracer
                tracer.kinds.class_of(self)
        return Attribute(self, k)

    @property
    def keys(self) -> Any:
        """What ``**`` asks for: torch's own proxies have it, and tensors have not."""
        self._absent("keys", sys._getframe(1))
        return super().keys

    def _absent(self, name: str, frame: FrameType) -> None:
        """Say what is true of a value that is a tensor: it has no attribute of some name."""
        tracer: Any = self.tracer
        surely = tracer.kinds.is_tensor(self.node) or self.node.op == "placeholder"
        if user_asks(frame) and (surely or not _reads_attribute(frame)):
            tracer.kinds.class_of(self)
            raise AttributeError(f"a tensor has no attribute {name!r}")

    def _known_size(self, name: str) -> Any:
        """What an attribute tells of the shape, if parameters alone determine the value."""
        tracer: Any = self.tracer
        return tracer.constants.size(self.node, operator.attrgetter(name))

    @classmethod
    def __torch_function__(
        cls,
        orig_method: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> fx.Proxy:
        tracer: Any = next(proxies_in((args, kwargs))).tracer
        tracer.doubts.forgive(sys._getframe(1))
        return super().__torch_function__(orig_method, types, args, kwargs)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", assign, (self, key, value), {})


def _record_inplace(name: str) -> Callable[[fx.Proxy, Any], Any]:
    """``x += y`` writes to x; a plain proxy would record ``x + y``."""
    function = getattr(operator, name)

    def method(self: fx.Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in "iadd isub imul itruediv ifloordiv imod ipow iand ior ixor imatmul".split():
    setattr(Proxy, f"__{_name}__", _record_inplace(_name))


class Attribute(_Reserved, fx.proxy.Attribute):
    """An attribute of a value, such as its shape."""

    attr: str


class ConstantProxy(Proxy):
    """A parameter or buffer, whose shape and type are known."""

    def __init__(self, node: fx.Node, tracer: fx.Tracer, value: Tensor) -> None:
        super().__init__(node, tracer)
        names = "shape ndim dtype device dim numel size".split()
        self._metadata = {name: getattr(value, name) for name in names}
        self.kind = type(value)

    def __getattr__(self, k: str) -> Any:
        metadata = self.__dict__.get("_metadata", {})
        return metadata[k] if k in metadata else super().__getattr__(k)


def _reads_attribute(frame: FrameType) -> bool:
    """Whether a frame is about to read an attribute by its name, or matches a pattern."""
    operation = dis.opname[frame.f_code.co_code[frame.f_lasti]]
    return operation in ("LOAD_ATTR", "LOAD_METHOD", "MATCH_CLASS")


def user_asks(frame: FrameType) -> bool:
    """Whether it is a model's code that runs in a frame."""
    asking: FrameType | None = frame
    while asking is not None and asking.f_globals.get("__name__") in _ASK_FOR_OTHERS:
        asking = asking.f_back
    module = "" if asking is None else str(asking.f_globals.get("__name__", ""))
    return not module.startswith(_NEVER_ASKS)


def _unpack(proxy: Any, caller: FrameType) -> Iterator[fx.Proxy]:
    """The values of an assignment such as ``b, c, h, w = x.shape``."""
    count = _length(proxy)
    if count is None:
        for instruction in dis.get_instructions(caller.f_code):
            unpacks = instruction.opname == "UNPACK_SEQUENCE"
            if unpacks and instruction.offset == caller.f_lasti:
                count = int(instruction.argval)
                proxy.node.meta["length"] = count
    if count is not None:
        return iter([proxy[index] for index in range(count)])
    values: Iterator[fx.Proxy] = proxy.tracer.iter(proxy)
    return values


def _length(proxy: Any) -> int | None:
    """How many values there are in one, if that does not depend on the input."""
    length = _known_length(proxy.node)
    return proxy.tracer.constants.size(proxy.node, len) if length is None else length


def _known_length(node: fx.Node) -> int | None:
    """How many values an operator returns, if that does not depend on its input."""
    name = getattr(node.target, "__name__", node.target)
    if node.op not in ("call_function", "call_method") or len(node.args) < 2:
        return None
    pieces = node.args[1]
    if name == "tensor_split" and isinstance(pieces, int):
        return pieces
    if name in ("split", "split_with_sizes") and isinstance(pieces, tuple | list):
        return len(pieces)
    return None


def arrives_as_tensor(value: Any) -> bool:
    """Whether a value is a tensor, also where it is one that code is traced with."""
    if isinstance(value, fx.Proxy):
        tracer: Any = value.tracer
        return issubclass(tracer.kinds.class_of(value), Tensor)
    return isinstance(value, Tensor)


def is_tensor(node: fx.Node) -> bool:
    """Whether the value of a node is a tensor, whatever the model's input is."""
    return any(_makes_a_tensor(operand) for operand in reached([node], _passes_a_tensor_on))


def _passes_a_tensor_on(node: fx.Node) -> list[fx.Node]:
    """The operands of a node one of which has to be a tensor that its value is one."""
    target: Any = node.target
    if node.op != "call_function" or _makes_a_tensor(node):
        return []
    if target is operator.getitem:
        return [first for first in node.args[:1] if isinstance(first, fx.Node)]
    return node.all_input_nodes if _is_arithmetic(node) else []


def _makes_a_tensor(node: fx.Node) -> bool:
    """Whether the value of a node is a tensor, whatever its operands are."""
    if node.op == "get_attr" or "tensor" in node.meta:
        return True
    if node.op == "call_method":
        return hasattr(Tensor, str(node.target)) and returns_a_tensor(str(node.target))
    if node.op != "call_function":
        return False
    target: Any = node.target
    if target is operator.getitem:
        first = node.args[0]
        return isinstance(first, fx.Node) and Trait.SPLITS in traits(first)
    module = str(getattr(target, "__module__", "") or "torch")
    declared = getattr(target, "__annotations__", {}).get("return")
    return module.partition(".")[0] == "torch" and (
        declared is Tensor or returns_a_tensor(target.__name__)
    )


def comes_of_tensors(node: fx.Node, is_one: Callable[[fx.Node], bool]) -> bool:
    """Whether a value is a tensor, or what arithmetic and methods of a tensor made of one."""
    while not is_one(node):
        if _is_arithmetic(node) and any(map(is_one, node.all_input_nodes)):
            return True
        name = str(getattr(node.target, "__name__", ""))
        if getattr(torch, name, None) is node.target and _makes_a_tensor_of_one(name):
            return True  # torch's own functions take no numbers alone
        if not _keeps_a_tensor_one(node):
            return False
        node = node.all_input_nodes[0]
    return True


def made_of_one_value(node: fx.Node) -> list[fx.Node]:
    """A value and those that it was made of, each a tensor if the one before it is."""
    chain = [node]
    # ``scale * x`` is a tensor if either is: which of them has to be is not known.
    while _keeps_a_tensor_one(node) and (
        len(node.all_input_nodes) == 1 or not _is_arithmetic(node)
    ):
        node = node.all_input_nodes[0]
        chain.append(node)
    return chain


def keys_after(value: fx.Node, chain: Sequence[fx.Node]) -> tuple[int | str, ...]:
    """The keys by which a value was made of another, both in `made_of_one_value`."""
    keys: list[int | str] = []
    for made in reversed(chain[: chain.index(value)]):
        key = made.args[1] if made.target is operator.getitem else None
        if not isinstance(key, int | str):
            break
        keys.append(key)
    return tuple(keys)


def _keeps_a_tensor_one(node: fx.Node) -> bool:
    """Whether what an operator returns is a tensor if its first operand is."""
    method = node.op == "call_method" and _makes_a_tensor_of_one(str(node.target))
    return bool(node.all_input_nodes) and (method or _is_arithmetic(node))


def _is_arithmetic(node: fx.Node) -> bool:
    name = str(getattr(node.target, "__name__", ""))
    return node.op == "call_function" and getattr(operator, name, None) is node.target


def _makes_a_tensor_of_one(name: str) -> bool:
    """Whether a tensor's method returns exactly one tensor, whatever else it is called with."""
    return hasattr(Tensor, name) and returns_a_tensor(name, of_one=True)


@cache
def returns_a_tensor(name: str, *, of_one: bool = False) -> bool:
    """Whether every overload of one of torch's operators returns exactly one tensor.

    Args:
        name: The operator.
        of_one: Whether only those overloads count whose first argument is a tensor.
    """
    packet = getattr(torch.ops.aten, name, None)
    overloads = [] if packet is None else packet.overloads()
    schemas = [getattr(packet, overload)._schema for overload in overloads]
    results = [
        [str(result.type) for result in schema.returns]
        for schema in schemas
        if not of_one or [str(argument.type) for argument in schema.arguments[:1]] == ["Tensor"]
    ]
    return bool(results) and all(types == ["Tensor"] for types in results)
