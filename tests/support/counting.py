"""Counts the operators that one forward executes, and their multiply-adds.

The counting is dynamic and knows nothing of the library under test: it sees what PyTorch runs, so
that a module, a function, a tensor method and a fused form are all counted alike.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "convolution", "_convolution", "_convolution_mode"}
TRANSPOSED = {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
LINEARS = {"linear", "addmm", "mm", "mv", "addmv"}  # and a matmul by a matrix
BATCH_NORMS = {"batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training"}
ADDITIONS = {"add", "sub", "rsub", "subtract", "addcmul"}
MULTIPLICATIONS = {"mul", "multiply", "div", "divide", "true_divide", "addcmul"}


@dataclass(frozen=True)
class OperatorCounts:
    """How often each kind of operator ran; `total` leaves views and metadata out."""

    convolutions: int = 0
    linears: int = 0
    batch_norms: int = 0
    additions: int = 0
    multiplications: int = 0
    average_pools: int = 0
    pads: int = 0
    total: int = 0
    macs: int = 0
    """Multiply-adds of convolutions and linear layers, but for a scale of each channel."""

    @property
    def affine(self) -> int:
        """Convolutions, linear layers, batch norms, additions and multiplications together."""
        return (
            self.convolutions
            + self.linears
            + self.batch_norms
            + self.additions
            + self.multiplications
        )

    def __add__(self, other: "OperatorCounts") -> "OperatorCounts":
        return OperatorCounts(
            *(getattr(self, f.name) + getattr(other, f.name) for f in fields(self))
        )

    def __str__(self) -> str:
        return ", ".join(f"{f.name} {getattr(self, f.name):,}" for f in fields(self))


def operator_name(func: Any) -> str:
    """`aten.add_.Tensor` is `add_`, whatever its overload."""
    return str(func._schema.name).partition("::")[2]


def writes(func: Any) -> bool:
    """Whether the operator changes one of its arguments."""
    return any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)


def is_view(func: Any) -> bool:
    """Whether the operator only looks at its argument in another way."""
    returned = [r.alias_info for r in func._schema.returns]
    return bool(returned) and all(a is not None and not a.is_write for a in returned)


def is_linear(name: str, args: Sequence[Any]) -> bool:
    """Whether this call multiplies by a matrix that the batch shares."""
    return name in LINEARS or (name == "matmul" and args[1].dim() <= 2)


class ExecutedOperators(TorchDispatchMode):
    """Calls `seen(func, args, kwargs, output)` for each operator executed under `executed(...)`."""

    def __init__(self, seen: Callable[[Any, Sequence[Any], Mapping[str, Any], Any], None]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        self.seen(func, args, kwargs or {}, output)
        return output

    def __enter__(self) -> Self:
        # Inference mode, since there the operators arrive as the user wrote them: with autograd's
        # dispatch keys in place, `linear` would arrive as a varying mix of views, mm, bmm and add.
        self._inference = torch.inference_mode()
        self._inference.__enter__()
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, value, trace)
        self._inference.__exit__(kind, value, trace)


class _Tally:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def seen(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        if is_view(func) or not any(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):
            return
        name = operator_name(func).removesuffix("_") or operator_name(func)
        count = self.counts
        count["total"] += 1
        first = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        if name in CONVOLUTIONS or name in TRANSPOSED:
            weight: Tensor = args[1]
            transposed = name in TRANSPOSED or (name.endswith("convolution") and bool(args[6]))
            per_position = args[0].numel() if transposed else first.numel()
            count["convolutions"] += 1
            scales = weight[0].numel() == 1 and first.shape == args[0].shape
            count["macs"] += 0 if scales else per_position * weight[0].numel()
        elif is_linear(name, args):
            count["linears"] += 1
            count["macs"] += first.numel() * _summed_length(name, args)
        elif name == "einsum" and len(args[1]) > 1:
            count["macs"] += first.numel() * _summed_by_equation(*args[:2])
        elif name in BATCH_NORMS:
            count["batch_norms"] += 1
        elif "avg_pool" in name:
            count["average_pools"] += 1
        elif name in {"pad", "constant_pad_nd"} or "_pad" in name:
            count["pads"] += 1
        elif first.is_floating_point():
            count["additions"] += name in ADDITIONS
            count["multiplications"] += name in MULTIPLICATIONS


def _summed_length(name: str, args: Sequence[Any]) -> int:
    matrix: Tensor = args[1 if name in {"addmm", "addmv"} else 0]
    return matrix.shape[-1]


def _summed_by_equation(equation: str, operands: Sequence[Tensor]) -> int:
    """How many products are added up for each number of an einsum; 0 where it only multiplies."""
    read, _, made = equation.replace(" ", "").partition("->")
    terms = [term.replace("...", "") for term in read.split(",")]
    sizes = {
        letter: size
        for term, operand in zip(terms, operands, strict=True)
        for letter, size in zip(reversed(term), reversed(operand.shape), strict=False)
    }
    summed = [size for letter, size in sizes.items() if letter not in made]
    return math.prod(summed) if summed else 0


@contextmanager
def counting() -> Iterator[Callable[[], OperatorCounts]]:
    """Counts what the block executes, in inference mode; call the result for the counts."""
    tally = _Tally()
    with ExecutedOperators(tally.seen):
        yield lambda: OperatorCounts(**tally.counts)


def count_operators(model: nn.Module | Callable[..., Any], inputs: Sequence[Any]) -> OperatorCounts:
    """Counts the operators of one `model(*inputs)`; a module and the inputs are copied first."""
    if isinstance(model, nn.Module):
        model = deepcopy(model)
    inputs = deepcopy(tuple(inputs))
    with counting() as counts:
        model(*inputs)
    return counts()
