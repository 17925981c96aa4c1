"""Run operators of a graph by themselves, and in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from reparam.modules.random_numbers import start_random_numbers
from reparam.modules.state import undisturbed
from reparam.modules.tree import has_hooks, join, own_tensors


def run_function(node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a function or a tensor method returns for other operands."""
    target: Any = node.target
    if node.op == "call_method":
        return run_method(target, *args, **kwargs)
    return target(*args, **kwargs)


def run_method(name: str, owner: Any, *args: Any, **kwargs: Any) -> Any:
    """What a method of a value returns."""
    return getattr(owner, name)(*args, **kwargs)


def in_float64(value: Any) -> Any:
    """A floating-point tensor in float64; anything else as it is."""
    floats = isinstance(value, Tensor) and value.is_floating_point()
    return value.double() if floats else value


TYPES_MAY_DIFFER = ContextVar("TYPES_MAY_DIFFER", default=False)
"""Whether fused code runs in another type than it was traced with, to see what it computes."""


class Widened(TorchDispatchMode):
    """Floating-point numbers are float64, whatever type the code asks for, or leaves to torch.

    An operator that takes one type only gets all of its operands in float64. One that does not run
    in float64 runs in float32, as it does in the model; `narrow` has its name.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.narrow: dict[str, None] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if not isinstance(func, torch._ops.OpOverload):
            return func(*args, **kwargs)
        if func is torch.ops.aten._assert_tensor_metadata.default:
            return None
        dtype = kwargs.get("dtype")
        if dtype is not None and dtype.is_floating_point:
            kwargs["dtype"] = torch.float64
        try:
            result = func(*args, **kwargs)
        except Exception:  # its operands are of several types, or it is for one type only
            return self._with_one_type(func, args, kwargs)
        if not _is_narrow(result) or not _makes_values(func):
            return result
        return _recomputed(func, args, kwargs, result)

    def _with_one_type(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What an operator returns that did not run on its operands as they are."""
        written = args[0].dtype if func._schema.is_mutable and args else torch.float64
        try:
            return _in_type(func, written, args, kwargs)
        except Exception:
            if func._schema.is_mutable:
                raise
            result = tree_map(in_float64, _in_type(func, torch.float32, args, kwargs))
        self.narrow[str(func.overloadpacket)] = None
        return result


def _in_type(func: Any, dtype: torch.dtype, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operator returns for operands of one floating-point type."""

    def converted(value: Any) -> Any:
        floats = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if floats else value

    args, kwargs = tree_map(converted, (args, kwargs))
    return func(*args, **kwargs)


def _is_narrow(result: Any) -> bool:
    return (
        isinstance(result, Tensor) and result.is_floating_point() and result.dtype != torch.float64
    )


def _makes_values(func: Any) -> bool:
    """Whether an operator returns new values: no view, and no random numbers."""
    schema = func._schema
    aliases = schema.is_mutable or any(result.alias_info for result in schema.returns)
    return not aliases and torch.Tag.nondeterministic_seeded not in func.tags


def _recomputed(func: Any, args: Any, kwargs: dict[str, Any], result: Tensor) -> Tensor:
    """What an operator returns in float64 that made smaller floats of numbers or of integers."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not tensors:
        asks = any(argument.name == "dtype" for argument in func._schema.arguments)
        return func(*args, **{**kwargs, "dtype": torch.float64}) if asks else result.double()
    of_integers = not any(tensor.is_floating_point() for tensor in tensors)

    def widened(value: Any) -> Any:
        integers = of_integers and isinstance(value, Tensor) and not value.is_complex()
        return value.double() if integers else in_float64(value)

    args, kwargs = tree_map(widened, (args, kwargs))
    try:
        recomputed: Tensor = func(*args, **kwargs)
    except Exception:  # integers are more than numbers to it, such as positions
        return result.double()
    return recomputed


def call_exact(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    exact: Mapping[int, Tensor],
    without: Collection[str] = (),
) -> Any:
    """Call a module in float64, without a copy of it.

    Args:
        module: The module.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        exact: What it uses instead of some parameters, by the identity of these.
        without: Paths of its parts whose tensors are not used.
    """
    weights = _weights(module, exact, without)
    with nullcontext() if _only_computes(module) else _on_trial(module), of_any_type():
        return torch.func.functional_call(module, weights, args, kwargs, tie_weights=False)


class Layer:
    """A module that runs on tensors in place of its own, of which it holds none.

    Args:
        module: One that only computes.
        exactly: Whether it runs in float64.
    """

    def __init__(self, module: nn.Module, *, exactly: bool) -> None:
        held = (*module.parameters(), *module.buffers())
        memo: dict[int, Any] = {id(tensor): tensor.detach().to("meta") for tensor in held}
        self.module = copy.deepcopy(module, memo)
        self.exactly = exactly

    def __call__(self, held: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """What the module returns with these parameters and buffers, by path."""
        call = torch.func.functional_call
        if not self.exactly:
            return call(self.module, dict(held), args, kwargs, tie_weights=False)
        weights = {name: in_float64(tensor) for name, tensor in held.items()}
        with nullcontext() if _only_computes(self.module) else Widened(), of_any_type():
            return call(self.module, weights, args, kwargs, tie_weights=False)


def call_in_modes(
    module: nn.Module,
    inputs: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]],
    without: Collection[str] = (),
) -> list[Any]:
    """Call a module in float64 again and again, as its users may: what it returned each time.

    That is with gradients and autocast, and in inference mode, under other random numbers each time
    and with what the call before left behind.

    Args:
        module: The module.
        inputs: Makes its positional and keyword arguments.
        without: Paths of its parts whose tensors are not used.
    """
    weights = _weights(module, {}, without)
    device = next((tensor.device.type for tensor in weights.values()), "cpu")
    results = []
    with _on_trial(module), of_any_type():
        for seed, mode in enumerate((torch.enable_grad, torch.inference_mode)):
            start_random_numbers(seed)
            # Autocast leaves float64 alone: what comes out otherwise was asked for.
            with mode(), torch.autocast(device, torch.bfloat16, enabled=not seed):
                args, kwargs = inputs()
                call = torch.func.functional_call
                results.append(call(module, weights, args, kwargs, tie_weights=False))
    return results


def _weights(
    module: nn.Module, exact: Mapping[int, Tensor], without: Collection[str]
) -> dict[str, Tensor]:
    """A module's floating-point tensors in float64, by path."""
    unused = tuple(f"{path}." for path in without)
    return {
        join(path, name): exact[id(tensor)] if id(tensor) in exact else tensor.detach().double()
        for path, part in module.named_modules()  # each once, since each is put back once
        if not f"{path}.".startswith(unused)
        for name, tensor in own_tensors(part).items()
        if tensor.is_floating_point()
    }


@contextmanager
def _on_trial(module: nn.Module) -> Iterator[None]:
    """Leave a module as it was, and let what it holds and makes be float64."""
    with undisturbed(module) as watch, Widened():
        registered = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
        widen(held for held in watch.tensors() if id(held) not in registered)
        yield


def widen(tensors: Iterable[Tensor]) -> None:
    """Let tensors that a model holds besides its parameters and buffers be float64."""
    for tensor in tensors:
        if tensor.is_floating_point() and not tensor.is_inference():
            tensor.data = tensor.data.double()


def _only_computes(module: nn.Module) -> bool:
    """Whether a module is one of torch's layers in eval mode; a user's may count its calls."""
    return (
        type(module).__module__ in _LAYERS
        and not module.training
        and not module._modules
        and not has_hooks(module)
        and "forward" not in vars(module)
    )


_LAYERS = {
    f"torch.nn.modules.{name}"
    for name in "activation batchnorm conv dropout flatten linear padding pooling".split()
}


@contextmanager
def of_any_type() -> Iterator[None]:
    """Let `TYPES_MAY_DIFFER` be true meanwhile."""
    token = TYPES_MAY_DIFFER.set(True)
    try:
        yield
    finally:
        TYPES_MAY_DIFFER.reset(token)
