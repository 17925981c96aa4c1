"""The forward that replaces a module's own where its code changed."""

from __future__ import annotations

import copy
import hashlib
import importlib
import inspect
import linecache
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import fx, nn

from reparam.capture import (
    EarlyReturnError,
    arrives_as_tensor,
    has_outline,
    is_same_constant,
    with_blocks,
)
from reparam.errors import ReparamError
from reparam.modules import TYPES_MAY_DIFFER, find, has_hooks, own_tensors


@dataclass(frozen=True)
class Guards:
    """What was taken for granted of a forward's arguments while it was traced.

    Args:
        baked: Values of the parameters that tracing took as constants.
        outlines: Lengths and keys of the parameters that are containers, and constants in them.
        tensors: What the code has to find to be tensors: parameters, or what keys name in them.
        lengths: How many values some parameters have to hold at least.
        types: Weights of the module whose type was taken for the type of a value.
        unhooked: The parts it stands for that run other code if a hook gives them other arguments.
    """

    baked: dict[str, Any]
    outlines: dict[str, Any]
    tensors: frozenset[tuple[Any, ...]]
    lengths: dict[str, int]
    types: dict[str, torch.dtype]
    unhooked: tuple[str, ...]

    @property
    def look_inside(self) -> bool:
        """Whether it is not enough to know which arguments are given."""
        return any((self.outlines, self.tensors, self.lengths, self.types, self.unhooked))

    def hold(self, owner: nn.Module, arguments: Mapping[str, Any]) -> bool:
        """Whether a module and its arguments are such as were traced."""
        return (
            all(is_same_constant(arguments[name], value) for name, value in self.baked.items())
            and all(_is_tensor(arguments[name], keys) for name, *keys in self.tensors)
            and all(len(arguments[name]) >= count for name, count in self.lengths.items())
            and all(has_outline(arguments[name], was) for name, was in self.outlines.items())
            and all(_has_type(owner, name, dtype) for name, dtype in self.types.items())
            and not any(has_hooks(owner.get_submodule(path)) for path in self.unhooked)
        )


def _is_tensor(value: Any, keys: Sequence[int | str]) -> bool:
    """Whether a value is a tensor, or else what some keys name in it."""
    for key in keys:
        if isinstance(value, torch.Tensor):
            return True
        try:
            value = value[key]
        except (TypeError, LookupError):
            return False
    return arrives_as_tensor(value)


@dataclass(frozen=True)
class Held:
    """A weight that is still there, whose numbers decided what new code does.

    Args:
        holder: The module that holds it.
        name: Its name there.
        was: Its value then.
    """

    holder: nn.Module
    name: str
    was: torch.Tensor

    def check(self, owner: nn.Module) -> None:
        """Compare the weight with what it was.

        Raises:
            ReparamError: If it holds other numbers.
        """
        now = own_tensors(self.holder).get(self.name)
        if now is None or now.is_meta or torch.compiler.is_compiling():
            return  # nothing, or nothing yet, that could be compared
        now = now.detach()
        was = self.was.to(now.device)
        if not torch.equal(now, was.to(now.dtype)) and not torch.equal(now.to(was.dtype), was):
            raise ReparamError(
                f"{type(owner).__name__} was fused for the numbers that {self.name!r} of "
                f"{type(self.holder).__name__} held: they decided what its code does; fuse the "
                "model with these again"
            )


def held_at(root: nn.Module, path: str) -> Held | None:
    """The weight at a path; None if there is none any more."""
    holder, _, name = path.rpartition(".")
    module = find(root, holder)
    tensor = own_tensors(module).get(name) if isinstance(module, nn.Module) else None
    return None if tensor is None else Held(module, name, tensor.detach().clone())


class ScriptingError(ReparamError, AttributeError):
    """A fused module was given to torch.jit.script."""


class FusedForward:
    """The forward of a module some of whose operators were fused, or a method that it called.

    It is set on the instance and called like a method. Optional arguments keep the values they
    were traced with; a call with other values runs the method that was there before. What it keeps
    in attributes of the owner its code returns beside the result, by their names.
    """

    def __init__(
        self,
        owner: nn.Module,
        graph: fx.Graph,
        parameters: tuple[str, ...],
        guards: Guards,
        modal: bool,
        name: str = "forward",
        *,
        keeps: bool = False,
    ) -> None:
        code = graph.python_code("self")
        known = inspect.signature(getattr(owner, name)).parameters
        taken = list(known.values())[: len(parameters)]
        one_by_one = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in taken)
        # What a caller leaves out is not what another caller gave.
        left_out = all(is_same_constant(_left_out(known[n]), guards.baked[n]) for n in guards.baked)
        self.owner = owner
        self.code = with_blocks(code.src, graph)
        self.names = {name: value for name, value in code.globals.items() if name in code.src}
        self.parameters = parameters
        self.positional = (
            one_by_one
            and left_out
            and tuple(p.name for p in taken) == parameters
            and not guards.look_inside
        )
        self.guards = guards
        self.modal = modal
        self.training = owner.training
        self.name = name
        self.keeps = keeps
        self.numbers: list[Held] = []
        self.original = vars(owner).get(name)
        self.function = _compile(self.code, self.names)

    def attach(self) -> None:
        """Become the method of the owner."""
        vars(self.owner)[self.name] = self
        vars(self.owner)["_replicate_for_data_parallel"] = partial(_replicate, self.owner)

    def check(self, numbers: Iterable[Held]) -> None:
        """Raise an error in every call from now on for which some weights hold other numbers."""
        self.numbers = list(numbers)

    @property
    def __code__(self) -> CodeType:
        return self.function.__code__

    @property
    def __globals__(self) -> dict[str, Any]:
        raise ScriptingError(
            f"torch.jit.script compiles the source of classes, and this {type(self.owner).__name__}"
            " runs fused code of its own; use torch.jit.trace or torch.export"
        )

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._original())

    def _original(self) -> Callable[..., Any]:
        """The method that was there before: the class's, or one set on the instance."""
        return self.original or partial(getattr(type(self.owner), self.name), self.owner)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the fused code, or the class's own for arguments that were not traced."""
        if self.modal and self.owner.training != self.training:
            self._warn_of_mode()
        for held in self.numbers:
            held.check(self.owner)
        if self.positional and not kwargs and len(args) == len(self.parameters):
            return self._run(args)
        try:
            bound = inspect.signature(self._original()).bind(*args, **kwargs)
        except TypeError:  # a wrapper may take more than its signature says
            return self._original()(*args, **kwargs)
        bound.apply_defaults()
        values = [bound.arguments[name] for name in self.parameters]
        # A tensor was traced where now there may be none.
        if any(value is None for value in values) or not self.guards.hold(
            self.owner, bound.arguments
        ):
            return self._original()(*args, **kwargs)
        return self._run(values)

    def _run(self, values: Sequence[Any]) -> Any:
        try:
            result = self.function(self.owner, *values)
        except EarlyReturnError as early:
            return early.value
        if self.keeps:
            result, kept = result
            for name, value in kept.items():
                setattr(self.owner, name, value)
        return result

    def _warn_of_mode(self) -> None:
        self.modal = False
        mode = "training" if self.training else "eval"
        warnings.warn(
            f"{type(self.owner).__name__} was fused in {mode} mode, and its code asks for the "
            f"mode: what depends on it, such as a functional dropout, stays as in {mode} mode",
            stacklevel=4,
        )

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["function"]
        state["names"] = {
            name: ("module", value.__name__) if isinstance(value, ModuleType) else ("", value)
            for name, value in self.names.items()
        }
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.names = {
            name: importlib.import_module(value) if kind == "module" else value
            for name, (kind, value) in state["names"].items()
        }
        self.function = _compile(self.code, self.names)


def _left_out(parameter: inspect.Parameter) -> Any:
    """What a parameter is if no caller gives it."""
    if parameter.kind is parameter.VAR_POSITIONAL:
        return ()
    return {} if parameter.kind is parameter.VAR_KEYWORD else parameter.default


def _has_type(owner: nn.Module, name: str, dtype: torch.dtype) -> bool:
    """Whether values that go through a module with a weight have the type that was traced."""
    path, _, name = name.rpartition(".")
    weight: torch.Tensor = getattr(owner.get_submodule(path), name)
    if torch.is_autocast_enabled(weight.device.type):
        return False
    return weight.dtype == dtype or TYPES_MAY_DIFFER.get()


def _replicate(owner: Any) -> nn.Module:
    """A replica for ``nn.DataParallel``, made by its class, whose forward runs its own parts."""
    replica: nn.Module = type(owner)._replicate_for_data_parallel(owner)
    for name, method in vars(owner).items():
        if isinstance(method, FusedForward):
            vars(replica)[name] = own = copy.copy(method)
            own.owner = replica
    return replica


def _compile(code: str, names: dict[str, Any]) -> FunctionType:
    """Compile code so that tracebacks show its source."""
    lines = code.splitlines(keepends=True)
    place = f"<fused forward {hashlib.sha256(code.encode()).hexdigest()[:16]}>"
    linecache.cache[place] = (len(code), None, lines, place)
    namespace = dict(names)
    exec(compile(code, place, "exec", dont_inherit=True), namespace)
    function: FunctionType = namespace["forward"]
    return function
