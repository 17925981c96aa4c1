"""What a model's code asks of Python and torch besides its values, answered as in a run.

A proxy is no tensor, and code runs under the tracer in no mode that it will run in later: what can
be answered for every run is, and code that asks for the rest is not traced.
"""

from __future__ import annotations

import ast
import builtins
import dis
import importlib
import sys
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from functools import cache, partial, wraps
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx
from torch.fx import _symbolic_trace

from reparam.capture.operator_traits import CONSTANT_FACTORIES
from reparam.capture.reading import codes_in, contents, syntax_tree
from reparam.capture.stand_ins.proxies import user_asks
from reparam.capture.structures import proxies_in


@contextmanager
def answering_for_proxies(tracer: Any) -> Iterator[None]:
    """Let what knows nothing of proxies take one for what it stands for.

    That is Python's and torch's questions of what a value is, torch's of the mode that it runs in,
    and its functions that make a tensor of a given size.
    """
    # torch.compile takes down the builtins when it is first imported: they have to be Python's own.
    importlib.import_module("torch._dynamo")
    places: list[tuple[Any, str, Callable[..., Any]]] = [
        *((torch, name, _recorded(getattr(torch, name), tracer)) for name in _FACTORIES),
        *((torch, name, _refused(getattr(torch, name), tracer)) for name in _MODES),
        *((_symbolic_trace, name, _denied(getattr(_symbolic_trace, name))) for name in _TRACING),
        *((torch.overrides, name, _denied(getattr(torch.overrides, name))) for name in _OVERRIDES),
        *((builtins, answer.__name__, answer) for answer in _builtins()),
    ]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, answer in places:
        setattr(owner, name, answer)
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


_FACTORIES = "zeros ones empty full arange linspace logspace eye rand randn tensor".split()

_MODES = (
    "is_grad_enabled is_inference_mode_enabled is_autocast_enabled is_autocast_cpu_enabled "
    "is_autocast_cache_enabled get_autocast_dtype get_autocast_cpu_dtype get_autocast_gpu_dtype "
    "is_anomaly_enabled"
).split()

_ISINSTANCE = isinstance

_ORIGINALS = {getattr(torch, name) for name in _MODES}

_TRACING = "is_fx_tracing is_fx_symbolic_tracing".split()

_OVERRIDES = "has_torch_function has_torch_function_unary has_torch_function_variadic".split()


def _recorded(factory: Callable[..., Any], tracer: Any) -> Callable[..., Any]:
    """A function that becomes a node if a size it gets is one, or if the tracer asks for that."""

    @wraps(factory)
    def made(*args: Any, **kwargs: Any) -> Any:
        proxy = next(proxies_in((args, kwargs)), None)
        if proxy is not None:
            return proxy.tracer.create_proxy("call_function", factory, args, kwargs)
        value = factory(*args, **kwargs)
        records = factory in CONSTANT_FACTORIES and user_asks(sys._getframe(1))
        return tracer.made(factory, args, kwargs, value) if records else value

    return made


def _refused(asks_mode: Callable[..., Any], tracer: Any) -> Callable[..., Any]:
    """A function that tells of a mode: the graph would hold for that mode alone."""

    @wraps(asks_mode)
    def refused(*args: Any, **kwargs: Any) -> Any:
        # torch itself asks, to put back what a context has set.
        asking = str(sys._getframe(1).f_globals.get("__name__", ""))
        if asking.partition(".")[0] not in ("torch", "reparam"):
            reason = f"its forward asks torch.{asks_mode.__name__}(), which may change"
            tracer.doubts.refuse(reason=reason)
        return asks_mode(*args, **kwargs)

    return refused


def _denied(asks_tracing: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is false in every run, and true only of proxies and while they are used."""

    @wraps(asks_tracing)
    def denied(*args: Any, **kwargs: Any) -> Any:
        return not user_asks(sys._getframe(1)) and asks_tracing(*args, **kwargs)

    return denied


def _builtins() -> Iterator[Callable[..., Any]]:
    """Python's own functions, answering of a proxy what is true of the tensor."""
    originals = builtins.isinstance, builtins.callable, builtins.dir, builtins.zip
    is_a, is_callable, names, zip_up = originals

    def is_asked(value: Any) -> bool:
        return is_a(value, fx.Proxy) and user_asks(sys._getframe(2))

    def isinstance(value: Any, kinds: Any, /) -> bool:
        if not is_asked(value):
            return is_a(value, kinds)
        tracer: Any = value.tracer
        return issubclass(tracer.kinds.class_of(value), kinds)

    def callable(value: Any, /) -> bool:
        return is_callable(value) and not is_asked(value)  # no tensor is

    def dir(*values: Any) -> list[str]:
        # Without a value these are the names where it is asked for, which only Python knows.
        if not values:
            return sorted(sys._getframe(1).f_locals)
        tracer: Any = getattr(values[0], "tracer", None)
        return names(tracer.kinds.class_of(values[0]) if is_asked(values[0]) else values[0])

    def zip(*several: Any, strict: bool = False) -> Any:
        proxies = [value for value in several if is_a(value, fx.Proxy)]
        sized = [
            len(value) for value in several if is_a(value, Sized) and not is_a(value, fx.Proxy)
        ]
        if proxies and sized and not strict and user_asks(sys._getframe(1)):
            several = tuple(
                value.tracer.kinds.first_of(value, min(sized)) if is_a(value, fx.Proxy) else value
                for value in several
            )
        return zip_up(*several, strict=strict)

    yield from (isinstance, callable, dir, zip)


# -- What no proxy can answer ---------------------------------------------------------------------


_TYPES = {"dtype", "device", "__class__", "layout"}

_FLAGS = {name for name in dir(Tensor) if name.startswith("is_")} | {"requires_grad"}
"""Attributes of a tensor that are true or false."""


@cache
def unanswerable(function: FunctionType) -> str | None:
    """What a function does that only a run of it tells; None if nothing."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    enclosing = {name: contents(cell) for name, cell in cells}
    names = ChainMap(enclosing, function.__globals__, vars(builtins))
    for code in codes_in(function.__code__):
        if _sets_a_global(code):
            return "sets a global variable"
        if _asks_for_identity(code, names):
            return "asks for the type of a value, or for its identity"
        # Under names of the model's own, where torch's are replaced while it is traced.
        for name in (*code.co_names, *code.co_freevars):
            called = names.get(name)
            while isinstance(called, partial):
                called = called.func
            if called is _ISINSTANCE and name != _ISINSTANCE.__name__:
                return "asks for the type of a value, or for its identity"
            if isinstance(called, BuiltinFunctionType) and called in _ORIGINALS:
                return f"asks torch.{called.__name__}(), which may change"
    return None


@cache
def _sets_a_global(code: CodeType) -> bool:
    return any(
        step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") for step in dis.get_instructions(code)
    )


def is_caught(frame: FrameType) -> bool:
    """Whether what fails at the place where a frame is would be caught there."""
    # Asked of every frame around every operator: nearly none of them catches anything.
    if not frame.f_code.co_exceptiontable or not user_asks(frame):
        return False
    return any(first <= frame.f_lineno <= last for first, last in _caught_lines(frame.f_code))


@cache
def _caught_lines(code: CodeType) -> tuple[tuple[int, int], ...]:
    """The first and the last lines of what code tries and goes on after if it fails.

    That may be all of it where its source is not at hand; what is in parentheses tries nothing.
    """
    tree = syntax_tree(code)
    if tree is None:
        return () if code.co_name.startswith("<") else ((0, sys.maxsize),)
    before = code.co_firstlineno - 1
    tried = (node.body for node in ast.walk(tree) if _goes_on(node))
    return tuple((body[0].lineno + before, (body[-1].end_lineno or 0) + before) for body in tried)


def _goes_on(node: ast.AST) -> TypeGuard[ast.Try | ast.With]:
    """Whether a statement goes on if what is in it fails."""
    match node:
        case ast.Try(handlers=[_, *_]):
            return True
        case ast.With(items=items):
            contexts = [item.context_expr for item in items]
            functions = [context.func for context in contexts if isinstance(context, ast.Call)]
            return any("suppress" in ast.unparse(function) for function in functions)
    return False


def _asks_for_identity(code: CodeType, names: Mapping[str, Any]) -> bool:
    """Whether code compares types or flags by ``is`` or asks for ``type(x)``."""
    instructions = list(dis.get_instructions(code))
    for index, instruction in enumerate(instructions):
        loads = instruction.opname in ("LOAD_GLOBAL", "LOAD_DEREF")
        if loads and names.get(instruction.argval) is type:
            following = [other.argval for other in instructions[index + 1 : index + 3]]
            if "self" not in following:
                return True
        if instruction.opname == "IS_OP":
            before = instructions[max(0, index - 5) : index]
            asked = _TYPES
            if before[-1].opname == "LOAD_CONST":
                asked = _FLAGS if isinstance(before[-1].argval, bool) else set()
            if any(other.argval in asked for other in before):
                return True
    return False
