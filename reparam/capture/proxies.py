"""The values that tracing sends through a model's code in place of tensors.

What a proxy cannot know it must not pretend to know. It answers where the answer is certain, and
refuses where the code would otherwise take a wrong turn.
"""

from __future__ import annotations

import builtins
import dis
import importlib
import operator
import sys
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from functools import cache, wraps
from types import CodeType, FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor, fx

from reparam.capture.item_assignment import assign
from reparam.capture.operator_traits import CONSTANT_FACTORIES, Trait, traits
from reparam.capture.structures import proxies_in, reached

_NEVER_ASKS = (
    "torch.fx", "torch._", "torch.utils", "torch.overrides", "torch.nn.modules.module",
    "torch.nn.parameter", "reparam.",
)  # fmt: skip


class _Reserved:
    """What Python asks of a value by itself, and what code assigns to it: refused.

    Python answers with exceptions that a model's code may catch, and go on as if it knew better.
    """

    def _refuse(self, what: str, frame: FrameType | None = None) -> NoReturn:
        tracer: Any = vars(self)["tracer"]
        tracer.refuse(frame)
        raise UnknownValueError(f"a value that only a run of the model tells cannot {what}")

    def __setattr__(self, name: str, value: Any) -> None:
        if _user_asks(sys._getframe(1)):
            self._refuse(f"get another {name}")
        super().__setattr__(name, value)

    def __index__(self) -> int:  # noqa: PLE0305
        self._refuse("be an index", sys._getframe(1))

    def _become_a_number(self) -> NoReturn:
        self._refuse("become a number")

    __int__ = __float__ = __complex__ = _become_a_number

    def __hash__(self) -> int:
        if _user_asks(sys._getframe(1)):
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
        if _user_asks(frame) and "_assert" not in frame.f_code.co_names:
            self._refuse("be written into a text")
        return repr(self)


class UnknownValueError(fx.proxy.TraceError, TypeError):
    """Code asks for what only a run of the model tells."""


class Proxy(_Reserved, fx.Proxy):
    """A value of the graph."""

    def __getattr__(self, k: str) -> Any:
        if _user_asks(sys._getframe(1)) and not hasattr(Tensor, k):
            tracer: Any = self.tracer
            if tracer.is_tensor(self.node) or self.node.op == "placeholder":
                tracer.refuse()
                raise AttributeError(f"a tensor has no attribute {k!r}")
        return Attribute(self, k)

    def __len__(self) -> int:
        length = _known_length(self.node)
        if length is not None:
            return length
        tracer: Any = self.tracer
        tracer.refuse()
        return super().__len__()

    @classmethod
    def __torch_function__(
        cls,
        orig_method: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> fx.Proxy:
        tracer: Any = next(proxies_in((args, kwargs))).tracer
        tracer.forgive(sys._getframe(1))
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


@contextmanager
def answering_for_proxies(tracer: Any) -> Iterator[None]:
    """Let what knows nothing of proxies take one for what it stands for.

    That is ``isinstance`` and ``zip``, and torch's functions that make a tensor of a given size.
    """
    # torch.compile takes down the builtins when it is first imported: they have to be Python's own.
    importlib.import_module("torch._dynamo")
    factories = {name: getattr(torch, name) for name in _FACTORIES}
    with _answering_builtins():
        for name, factory in factories.items():
            setattr(torch, name, _recorded(factory, tracer))
        try:
            yield
        finally:
            for name, factory in factories.items():
                setattr(torch, name, factory)


_FACTORIES = "zeros ones empty full arange linspace logspace eye rand randn tensor".split()


def _recorded(factory: Callable[..., Any], tracer: Any) -> Callable[..., Any]:
    """A function that becomes a node if a size it gets is one, or if the tracer asks for that."""

    @wraps(factory)
    def made(*args: Any, **kwargs: Any) -> Any:
        proxy = next(proxies_in((args, kwargs)), None)
        if proxy is not None:
            return proxy.tracer.create_proxy("call_function", factory, args, kwargs)
        value = factory(*args, **kwargs)
        records = factory in CONSTANT_FACTORIES and _user_asks(sys._getframe(1))
        return tracer.made(factory, args, kwargs, value) if records else value

    return made


@contextmanager
def _answering_builtins() -> Iterator[None]:
    original, originally_zip = builtins.isinstance, builtins.zip

    def asked(value: Any, kinds: Any, /) -> bool:
        if not original(value, fx.Proxy) or not _user_asks(sys._getframe(1)):
            return original(value, kinds)
        tracer: Any = value.tracer
        return issubclass(tracer.class_of(value), kinds)

    def zipped(*several: Any, strict: bool = False) -> Any:
        proxies = [value for value in several if original(value, fx.Proxy)]
        sized = [
            len(value)
            for value in several
            if original(value, Sized) and not original(value, fx.Proxy)
        ]
        if proxies and sized and not strict and _user_asks(sys._getframe(1)):
            several = tuple(
                value.tracer.first_of(value, min(sized)) if original(value, fx.Proxy) else value
                for value in several
            )
        return originally_zip(*several, strict=strict)

    builtins.isinstance, builtins.zip = asked, zipped  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        builtins.isinstance, builtins.zip = original, originally_zip  # type: ignore[misc]


_TYPES = {"dtype", "device", "__class__", "layout"}


@cache
def asks_for_identity(code: CodeType) -> bool:
    """Whether code compares types by ``is`` or asks for ``type(x)``: no proxy can answer these."""
    instructions = list(dis.get_instructions(code))
    for index, instruction in enumerate(instructions):
        if instruction.opname == "LOAD_GLOBAL" and instruction.argval == "type":
            following = [other.argval for other in instructions[index + 1 : index + 3]]
            if "self" not in following:
                return True
        if instruction.opname == "IS_OP":
            before = instructions[max(0, index - 5) : index]
            constant = before[-1].opname == "LOAD_CONST"
            if not constant and any(other.argval in _TYPES for other in before):
                return True
    return False


def _user_asks(frame: FrameType) -> bool:
    """Whether it is a model's code that runs in a frame."""
    module = str(frame.f_globals.get("__name__", ""))
    return not module.startswith(_NEVER_ASKS)


def _unpack(proxy: Any, caller: FrameType) -> Iterator[fx.Proxy]:
    """The values of an assignment such as ``b, c, h, w = x.shape``."""
    count = _known_length(proxy.node)
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
    arithmetic = getattr(operator, str(getattr(target, "__name__", "")), None) is target
    return node.all_input_nodes if arithmetic else []


def _makes_a_tensor(node: fx.Node) -> bool:
    """Whether the value of a node is a tensor, whatever its operands are."""
    if node.op == "get_attr" or "tensor" in node.meta:
        return True
    if node.op == "call_method":
        return hasattr(Tensor, str(node.target)) and _returns_a_tensor(str(node.target))
    if node.op != "call_function":
        return False
    target: Any = node.target
    if target is operator.getitem:
        first = node.args[0]
        return isinstance(first, fx.Node) and Trait.SPLITS in traits(first)
    module = str(getattr(target, "__module__", "") or "torch")
    declared = getattr(target, "__annotations__", {}).get("return")
    return module.partition(".")[0] == "torch" and (
        declared is Tensor or _returns_a_tensor(target.__name__)
    )


def comes_of_tensors(node: fx.Node, is_one: Callable[[fx.Node], bool]) -> bool:
    """Whether a value is a tensor, or what arithmetic and methods of a tensor made of one."""
    while not is_one(node):
        target = node.target
        name = str(getattr(target, "__name__", ""))
        arithmetic = getattr(operator, name, None) is target
        if arithmetic and any(map(is_one, node.all_input_nodes)):
            return True
        if getattr(torch, name, None) is target and _makes_a_tensor_of_one(name):
            return True  # torch's own functions take no numbers alone
        method = node.op == "call_method" and _makes_a_tensor_of_one(str(target))
        if not (arithmetic or method) or not node.all_input_nodes:
            return False
        node = node.all_input_nodes[0]
    return True


def _makes_a_tensor_of_one(name: str) -> bool:
    """Whether a tensor's method returns exactly one tensor, whatever else it is called with."""
    return hasattr(Tensor, name) and _returns_a_tensor(name, of_one=True)


@cache
def _returns_a_tensor(name: str, *, of_one: bool = False) -> bool:
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
