"""Code that asks what kind of value it got, what is true of it, and which modes of torch are on."""

from collections.abc import Callable
from functools import singledispatch
from typing import Any

from torch import Tensor

__all__ = [
    "added_where_it_fits",
    "by_type",
    "called",
    "doubled",
    "is_a",
    "kind_of",
    "matched",
    "rows",
    "unpacked",
]

is_a = isinstance
kind_of = type

KINDS = (
    "isinstance({x}, torch.Tensor)",
    "isinstance({x}, (list, tuple))",
    "is_a({x}, torch.Tensor)",
    "kind_of({x}) is torch.Tensor",
    "{x}.__class__ is torch.Tensor",
    "issubclass(type({x}), torch.Tensor)",
    'type({x}).__name__ == "Tensor"',
    "torch.jit.isinstance({x}, torch.Tensor)",
    "torch.is_tensor({x})",
    'hasattr({x}, "keys")',
    'getattr({x}, "is_nested", True)',
    "callable({x})",
    '"items" in dir({x})',
    "{x} is not None",
    "isinstance({x}, torch.fx.Proxy)",
    "torch.overrides.has_torch_function(({x},))",
    "torch.fx._symbolic_trace.is_fx_tracing()",
    "torch.compiler.is_compiling()",
    "torch.jit.is_scripting() or torch.jit.is_tracing()",
)
"""Conditions on the kind of a value, and on who runs the code."""

FACTS = (
    "{x}.ndim == 4",
    "{x}.dim() > 3",
    "len({x}.shape) == 3",
    "{x}.shape[0] == 1",
    "{x}.shape[0] > 1",
    "{x}.shape[1] >= 4",
    "{x}.shape[-1] > 6",
    "{x}.size(-1) % 2 == 0",
    "{x}.numel() > 200",
    "{x}.dtype == torch.float32",
    "{x}.dtype in (torch.float16, torch.bfloat16)",
    "{x}.is_floating_point()",
    '{x}.device.type == "cpu"',
    "{x}.is_cuda",
    "{x}.is_contiguous()",
    "{x}.layout == torch.strided",
    "{x}.requires_grad",
    "{x}.grad_fn is None",
    "{x}.is_inference()",
)
"""Conditions on what is true of a tensor."""

MODES = (
    "torch.is_grad_enabled()",
    "torch.is_inference_mode_enabled()",
    'torch.is_autocast_enabled("cpu")',
    "torch.get_default_dtype() == torch.float64",
    "self.training",
)
"""Conditions on modes of torch and of the module."""


@singledispatch
def doubled(x: Any) -> Any:
    """Twice a tensor; anything else as it is."""
    return x


@doubled.register
def _(x: Tensor) -> Tensor:
    return x * 2


def matched(x: Any) -> Any:
    """A tensor or what a mapping holds, by its pattern."""
    match x:
        case Tensor():
            return x * 0.5
        case {"x": y}:
            return y
        case _:
            return x


HANDLERS: dict[type, Callable[[Any], Any]] = {Tensor: lambda x: x + 1, list: lambda x: x[0]}


def by_type(x: Any) -> Any:
    """What the handler of exactly this type makes of a value."""
    return HANDLERS.get(type(x), lambda value: value)(x)


def unpacked(x: Any) -> Any:
    """The image of a mapping, which is known by its method."""
    return x["image"] if hasattr(x, "keys") else x


def called(x: Any) -> Any:
    """What a value gives where it can be called."""
    return x() if callable(x) else x


def rows(x: Tensor) -> Tensor:
    """A row per image: a view where the memory allows it."""
    try:
        return x.view(x.shape[0], -1)
    except RuntimeError:
        return x.reshape(x.shape[0], -1)


def added_where_it_fits(x: Tensor, table: Tensor) -> Tensor:
    """A sum at the size that a table was made for."""
    try:
        return x + table
    except RuntimeError:
        return x
