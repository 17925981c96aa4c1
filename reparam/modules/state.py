"""What running a forward may change besides its result: remembered, and put back."""

from __future__ import annotations

import operator
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from types import BuiltinMethodType, CellType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reparam.modules.random_numbers import random_state, set_random_state
from reparam.modules.silent_writes import is_torchs, written_by
from reparam.modules.stateful_objects import (
    draws,
    has_state,
    is_iterator,
    place_of,
    set_state,
    stand_in,
    state_of,
)
from reparam.modules.tree import is_plain, memory
from reparam.modules.undoing import fulfil, promise

_OPEN = {"argparse", "collections", "queue", "types"}
"""What is of these holds what it holds in its attributes, as a user's own object does."""

_UNCHANGING = (tuple, MethodType, BuiltinMethodType, partial)
"""What stays as it is, whatever becomes of what it holds."""

_OURS = __name__.partition(".")[0]
"""What this package puts into a model while it runs takes notes, which stay."""

_FOREIGN = (sys.stdlib_module_names - _OPEN) | {"torch", "numpy", _OURS}


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[Watch]:
    """Run a model and leave its attributes, its tensors and the random numbers as they were.

    What the context gives tells afterwards what would have changed.
    """
    tensors = (*model.parameters(), *model.buffers())
    inference = any(tensor.is_inference() for tensor in tensors)  # they are written in that mode
    with Watch(model) as watch, torch.inference_mode() if inference else nullcontext():
        yield watch


def tensors_held(root: nn.Module) -> list[Tensor]:
    """All tensors below a module, each once: registered, or in attributes and containers."""
    return [holder for _, holder in _holders(root) if isinstance(holder, Tensor)]


class Watch(TorchDispatchMode):
    """A context that remembers the state which a forward may change, and puts it back at its end.

    That is what the modules hold in attributes, containers and objects of their own, the memory of
    their tensors, and the random numbers. Memory is copied before an operator writes to it for the
    first time: nothing is copied of what is only read, and no write is missed, through whatever
    view.

    Args:
        root: The module whose forward runs.
    """

    supports_higher_order_operators = True  # such as torch.cond

    def __init__(self, root: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.random = random_state()
        self.drew = False
        """Whether random numbers were drawn."""
        self.changed: list[nn.Module] = []
        """The modules whose attributes or tensors were changed."""
        self.moved: list[nn.Module] = []
        """Those of which a generator of random numbers, or an iterator, went on."""
        self._contents: list[tuple[nn.Module, Any, Any, Any]] = []
        self._tensors: list[tuple[nn.Module, Tensor, Tensor, bool]] = []
        self._iterators: list[_StandIn] = []
        for owner, holder in _holders(root):
            if isinstance(holder, Tensor):
                self._tensors.append((owner, holder, holder.detach(), holder.requires_grad))
            elif is_iterator(holder):
                second = stand_in(holder)
                self._iterators.append(_StandIn(owner, holder, second, place_of(second)))
            else:
                content = _content(holder)
                self._contents.append((owner, holder, content, content))
        self._watched = {tensor.untyped_storage()._cdata for _, tensor, _, _ in self._tensors}
        self._originals: dict[int, tuple[UntypedStorage, UntypedStorage]] = {}

    def tensors(self) -> list[Tensor]:
        """The tensors whose memory is put back."""
        return [tensor for _, tensor, _, _ in self._tensors]

    def containers(self) -> list[Any]:
        """The lists, dictionaries and attributes of own objects that are put back."""
        return [
            holder if isinstance(holder, dict | list | deque) else vars(holder)
            for _, holder, _, _ in self._contents
            if isinstance(holder, dict | list | deque)
            or (hasattr(holder, "__dict__") and not isinstance(holder, type | nn.Module))
        ]

    def __enter__(self) -> Watch:
        promise(self.put_back)
        seconds = {id(iterator): second for _, iterator, second, _ in self._iterators}
        for index, (owner, holder, content, _) in enumerate(self._contents if seconds else ()):
            used = _with(content, seconds)
            if not _same(used, content):
                self._contents[index] = owner, holder, content, used
                _refill(holder, used)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    @property
    def writes(self) -> int:
        """How many pieces of the model's memory were written to so far."""
        return len(self._originals)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.OpOverload):
            known = is_torchs(func)
            written = written_by(func, args, kwargs) if known else (args, kwargs)
            for tensor in tree_leaves(written) if written else ():
                if _has_memory(tensor):
                    self._keep(tensor.untyped_storage())
        return func(*args, **kwargs)

    def _keep(self, storage: UntypedStorage) -> None:
        if storage._cdata in self._watched and storage._cdata not in self._originals:
            self._originals[storage._cdata] = storage, storage.clone()

    def __exit__(self, *problem: Any) -> None:
        super().__exit__(*problem)  # type: ignore[no-untyped-call]
        self.drew = random_state() != self.random
        fulfil(self.put_back)

    def put_back(self) -> None:
        """Put everything back, and note whose it is that changed."""
        set_random_state(self.random)
        for storage, original in self._originals.values():
            storage.copy_(original)
        for owner, holder, content, used in self._contents:
            now = _content(holder)
            if not _same(now, used):
                self.changed.append(owner)
                if draws(holder):
                    self.moved.append(owner)
            if not _same(now, content):
                _refill(holder, content)
        for owner, _, second, place in self._iterators:
            if place_of(second) != place:
                self.changed.append(owner)
                self.moved.append(owner)
        for owner, tensor, alias, requires_grad in self._tensors:
            moved = _place(tensor) != _place(alias)
            if moved:
                tensor.data = alias
            if not requires_grad and tensor.grad_fn is not None:
                tensor.detach_()  # it was written to under gradients
            if tensor.requires_grad != requires_grad:
                moved = True
                tensor.requires_grad_(requires_grad)
            if moved or memory(tensor) in self._originals:
                self.changed.append(owner)


class _StandIn(NamedTuple):
    """An iterator of a module, and a second one that stands for it, with its place at first."""

    owner: nn.Module
    iterator: Any
    second: Any
    place: Any


def _with(content: Any, seconds: Mapping[int, Any]) -> Any:
    """A content with second iterators instead of those that it holds, in tuples too."""

    def chosen(value: Any) -> Any:
        if type(value) is tuple:
            several = tuple(map(chosen, value))
            return several if any(map(operator.is_not, several, value)) else value
        return seconds.get(id(value), value)

    if isinstance(content, dict):
        return {name: chosen(value) for name, value in content.items()}
    return [chosen(value) for value in content] if isinstance(content, list) else content


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Which memory a tensor looks at, and how."""
    return memory(tensor), tensor.shape, tensor.stride(), tensor.storage_offset()


def _has_memory(value: Any) -> bool:
    """Whether a value is a tensor with memory of its own: not sharded, quantised or sparse."""
    return isinstance(value, Tensor) and is_plain(value) and value.layout is torch.strided


def _holders(root: nn.Module) -> Iterator[tuple[nn.Module, Any]]:
    """Everything below a module that can be changed, and the module that holds it."""
    pending: list[tuple[nn.Module, Any]] = [(module, module) for module in root.modules()]
    pending.reverse()
    seen: set[int] = set()
    while pending:
        owner, value = pending.pop()
        entries = None if id(value) in seen else _entries(value)
        seen.add(id(value))
        if entries is None:
            continue
        if isinstance(value, nn.Module):
            owner = value
        if not isinstance(value, _UNCHANGING):
            yield owner, value
        pending.extend((owner, entry) for entry in entries if not _is_constant(entry))


def _entries(value: Any) -> Iterable[Any] | None:
    """What a value holds; None if it is nothing that a forward may change, or can be put back."""
    match value:
        case nn.Module():
            kinds = (kind for kind in type(value).__mro__ if not _is_foreign(kind))
            return (*vars(value).values(), *kinds)
        case dict():
            return value.values()
        case list() | set() | deque() | tuple():
            return value
        case Tensor():
            return () if _has_memory(value) else None
        case type():
            return vars(value).values() if issubclass(value, nn.Module) else None
        case FunctionType():
            # Variables that it shares, and may set.
            home = str(value.__globals__.get("__name__")).partition(".")[0]
            return None if home == _OURS else value.__closure__
        case CellType():
            return tuple(_content(value).values())
        case MethodType() | BuiltinMethodType():
            return (value.__self__,)  # such as the method by which a generator draws
        case partial():
            return (value.func, *value.args, *value.keywords.values())
        case ModuleType() | fx.Proxy():
            return None
    if has_state(value) or is_iterator(value):
        return ()
    own = hasattr(value, "__dict__") and not _is_foreign(type(value))
    return vars(value).values() if own else None


def _is_foreign(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _FOREIGN


def _is_constant(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | bytes)


def _content(holder: Any) -> Any:
    """A shallow copy of what something holds, or its state."""
    if has_state(holder):
        return state_of(holder)
    if isinstance(holder, CellType):
        with suppress(ValueError):  # nothing yet
            return {"cell_contents": holder.cell_contents}
        return {}
    if isinstance(holder, dict):
        return dict(holder)
    if isinstance(holder, list | deque):
        return list(holder)
    return set(holder) if isinstance(holder, set) else dict(vars(holder))


def _same(now: Any, then: Any) -> bool:
    """Whether two contents are made of the same things."""
    if isinstance(now, dict):
        return now.keys() == then.keys() and all(map(_equal, now.values(), map(then.get, now)))
    if isinstance(now, list):
        return len(now) == len(then) and all(map(_equal, now, then))
    return bool(now == then)


def _equal(now: Any, then: Any) -> bool:
    return now is then or (_is_constant(then) and type(now) is type(then) and bool(now == then))


def _refill(holder: Any, content: Any) -> None:
    """Put back what something held, or the state that it had."""
    if has_state(holder):
        set_state(holder, content)
        return
    if isinstance(holder, CellType):
        del holder.cell_contents
        for name, value in content.items():
            setattr(holder, name, value)
        return
    if isinstance(holder, type):
        for name in vars(holder).keys() - content.keys():
            delattr(holder, name)
        for name, value in content.items():
            if name not in vars(holder) or not _equal(vars(holder)[name], value):
                setattr(holder, name, value)
        return
    target = holder if isinstance(holder, dict | list | deque | set) else vars(holder)
    target.clear()
    target.extend(content) if isinstance(target, list | deque) else target.update(content)


@contextmanager
def all_or_nothing(target: nn.Module, written: Iterable[Tensor] = ()) -> Iterator[None]:
    """Put every module back as it was if anything is raised."""
    values = [(tensor, tensor.detach().clone()) for tensor in written]
    saved = [
        (
            module,
            type(module),
            [
                (held, dict(held))
                for held in (vars(module), module._modules, module._parameters, module._buffers)
            ],
        )
        for module in target.modules()
    ]
    try:
        yield
    except BaseException:
        for module, kind, contents in saved:
            if type(module) is not kind:
                module.__class__ = kind
            for held, before in contents:
                held.clear()
                held.update(before)
            if isinstance(module, fx.GraphModule):
                module.recompile()
        for tensor, value in values:
            overwrite(tensor, value)
        raise


def overwrite(tensor: Tensor, values: Tensor) -> None:
    """Write other values to the memory of a tensor."""
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        tensor.copy_(values)
