"""Copies of a model."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator, Mapping
from types import CellType, FunctionType, MethodType
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from reparam.errors import ReparamError
from reparam.modules.tree import memory


def copy_model(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy, in the same mode, none of whose modules is one of the model's.

    Modules that copy themselves may hand on what they hold, such as a frozen part, or themselves.
    The tensors of such a part stay the model's own; what holds them is the copy's.

    Raises:
        ReparamError: If the model cannot be copied.
    """
    memo = {} if memo is None else memo
    graph_modules = [module for module in model.modules() if isinstance(module, fx.GraphModule)]
    for name in ("_in_spec", "_out_spec"):  # never changed, and torch warns of copying them
        memo.update((id(spec), spec) for m in graph_modules for spec in [vars(m).get(name)])
    try:
        with _CopyingResults():
            copied = copy.deepcopy(model, memo)
    except Exception as error:
        raise ReparamError(
            f"the model cannot be copied ({type(error).__name__}: {error}); `fuse` can change it "
            "itself: pass inplace=True"
        ) from error
    copied = _with_own_modules(copied, model)
    _close_over_copies(copied, memo)
    # Some modules that copy themselves wake up in training mode.
    modes = {path: module.training for path, module in model.named_modules()}
    for path, module in copied.named_modules():
        if module.training != modes.get(path, module.training):
            module.training = modes[path]
    return copied


class _CopyingResults(TorchFunctionMode):
    """Deep copies of what an earlier call computed with gradients, and the model has kept.

    Such a tensor belongs to the graph of that call, and torch does not copy it. Its copy holds the
    same numbers and belongs to none.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            values = tensor.detach()
            # The memo goes by identity, which must not be that of another object later.
            memo.setdefault(id(memo), []).append(values)
            args = values, memo
        return func(*args, **(kwargs or {}))


def copy_apart(model: nn.Module) -> nn.Module:
    """A copy that shares no tensor with the model either, so that it can take another type.

    Raises:
        ReparamError: If the model cannot be copied.
    """
    copied, own = copy_model(model), dict[int, Tensor]()
    theirs = {memory(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for module in copied.modules():
        registries: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for held in registries:
            for name, tensor in held.items():
                if tensor is not None and memory(tensor) in theirs:
                    held[name] = own.setdefault(id(tensor), copy.deepcopy(tensor))
    return copied


def own_registries(module: nn.Module) -> None:
    """Let a module register its parts for itself: a shallow copy does that with another."""
    for name in ("_modules", "_parameters", "_buffers"):
        held = vars(module).get(name)
        if isinstance(held, dict):
            vars(module)[name] = copy.copy(held)


def _with_own_modules(copied: nn.Module, model: nn.Module) -> nn.Module:
    """A copy in which other modules stand for those that it shares with the model."""
    originals, modules = set(model.modules()), list(copied.modules())
    shared = originals.intersection(modules)
    twins = {m: _twin(m) for m in shared if not isinstance(m, torch.jit.ScriptModule)}
    for module in modules:
        holder = twins.get(module, module)
        own_registries(holder)
        for name, child in holder._modules.items():
            if child in twins:
                holder._modules[name] = twins[child]
        for name, value in vars(holder).items():
            method = isinstance(value, MethodType)
            called = value if method or name == "forward" else None
            owner = getattr(called, "__self__" if method else "owner", None)
            if isinstance(owner, nn.Module) and owner in originals:
                alike = holder if type(owner) is type(holder) else owner
                vars(holder)[name] = _of_another(value, twins.get(owner, alike))
    return twins.get(copied, copied)


def _close_over_copies(copied: nn.Module, memo: Mapping[int, Any]) -> None:
    """Let the functions that a copy holds, such as its hooks, read the copy, not the model.

    A deep copy hands functions on, with the variables around them: a hook that keeps what it sees
    in an attribute of its model would go on to keep it in that of the original.
    """
    made: dict[int, Any] = {}
    for module in copied.modules():
        for holder in (vars(module), *vars(module).values()):
            entries = enumerate(holder) if isinstance(holder, list) else ()
            for key, value in list(holder.items() if isinstance(holder, dict) else entries):
                if _reads_copied(value, memo, set()):
                    holder[key] = _over_copies(value, memo, made)


def _reads_copied(value: Any, memo: Mapping[int, Any], seen: set[int]) -> bool:
    """Whether a value is a function around which a variable holds what was copied."""
    if not isinstance(value, FunctionType) or id(value) in seen:
        return False
    seen.add(id(value))
    return any(_is_of_model(cell, memo, seen) for cell in value.__closure__ or ())


def _is_of_model(cell: CellType, memo: Mapping[int, Any], seen: set[int]) -> bool:
    """Whether a variable holds what was copied, or a function that reads such."""
    if cell == CellType():
        return False
    held = cell.cell_contents
    return memo.get(id(held), held) is not held or _reads_copied(held, memo, seen)


def _over_copies(
    function: FunctionType, memo: Mapping[int, Any], made: dict[int, Any]
) -> FunctionType:
    """The same function, with the copies of what was copied in the variables around it.

    Its other variables, a counter say, stay those that all copies share.
    """
    if id(function) in made:
        return cast("FunctionType", made[id(function)])
    closure = function.__closure__ or ()
    changing = [cell for cell in closure if _is_of_model(cell, memo, set())]
    fresh = [cell for cell in changing if id(cell) not in made]
    made.update((id(cell), CellType()) for cell in fresh)
    cells = tuple(made.get(id(cell), cell) for cell in closure)
    code, variables, name = function.__code__, function.__globals__, function.__name__
    over = FunctionType(code, variables, name, function.__defaults__, cells)
    over.__kwdefaults__, over.__qualname__ = function.__kwdefaults__, function.__qualname__
    vars(over).update(vars(function))
    made[id(function)] = over
    for cell in fresh:  # now, since a function may be among the variables around itself
        held = cell.cell_contents
        read = _reads_copied(held, memo, set())
        made[id(cell)].cell_contents = (
            _over_copies(held, memo, made) if read else memo.get(id(held), held)
        )
    return over


def _twin(module: nn.Module) -> nn.Module:
    """Another module that holds the same."""
    twin: nn.Module = type(module).__new__(type(module))
    vars(twin).update(vars(module))
    return twin


def _of_another(method: Any, owner: nn.Module) -> Any:
    """A method of another module, or fused code that is called like one."""
    if isinstance(method, MethodType):
        return MethodType(method.__func__, owner)
    method = copy.copy(method)
    method.owner = owner
    return method


class LateCopy:
    """A deep copy whose parameters look at the memory of the original's until they get their own.

    What is removed from it before that is never copied.

    Args:
        model: The model.

    Attributes:
        model: The copy.

    Raises:
        ReparamError: If the model cannot be copied.
    """

    def __init__(self, model: nn.Module) -> None:
        at_once = {id(parameter) for parameter in _met_while_copied(model)}
        memo: dict[int, Any] = {
            id(parameter): nn.Parameter(parameter.detach(), parameter.requires_grad)
            for parameter in model.parameters()
            if type(parameter) is nn.Parameter
            and not parameter.is_inference()
            and id(parameter) not in at_once
        }
        self._parameters = [weakref.ref(parameter) for parameter in memo.values()]
        self.model = copy_model(model, memo)

    def copy_parameters(self) -> None:
        """Give all parameters that are still there memory of their own, as a deep copy does."""
        for reference in self._parameters:
            parameter = reference()
            if parameter is not None:
                parameter.data = parameter.data.clone(memory_format=torch.preserve_format)


def _met_while_copied(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that somebody's code gets to see, and may write to, while they are copied."""
    names = "__deepcopy__ __reduce_ex__ __reduce__ __getstate__ __setstate__".split()
    for module in model.modules():
        if any(_is_foreign(getattr(module, name, None)) for name in names):
            yield from module.parameters()


def _is_foreign(copier: Any) -> bool:
    home = getattr(copier, "__module__", None)  # python's own have none
    return home is not None and home.partition(".")[0] != "torch"
