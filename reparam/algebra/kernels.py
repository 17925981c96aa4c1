r"""Arithmetic on convolution kernels, in float64 and differentiable.

A kernel has the shape ``(out_channels, in_channels / groups, *taps)``, for transposed
convolutions too, so that every law is written once. A depthwise kernel whose number of channels
is not known yet has the shape ``(1, 1, *taps)`` and broadcasts.

With taps at the offsets ``index * step + start`` of a lattice, the laws are

* addition (RepVGG, arXiv 2101.03697, section 3.3; ACNet, arXiv 1908.03930, section 3.2)::

      (A + B)[o, i, t] = A[o, i, t] + B[o, i, t]

* composition (DBB, arXiv 2103.13425, transform III, for any number of taps)::

      (B . A)[o, i, t] = sum over m, t1 + s * t2 = t of B[o, m, t2] * A[m, i, t1]

Kernels stay as sparse as their groups: a depthwise factor is never made dense.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import gcd
from typing import Any

import torch
from torch import Tensor

from reparam.algebra.expressions import evaluate, leaves, origin_of

Weights = tuple[Tensor, Tensor | None]
"""A kernel and its bias, or None where there is none."""


@dataclass(frozen=True, eq=False)
class Lazy:
    """A pair of kernel and bias that is computed only when somebody asks for it.

    Every result is fresh memory that the next step may overwrite.

    Args:
        compute: Makes the pair from the pairs of ``operands``, and from ``tensors``.
        operands: What has to be computed before.
        tensors: The parameters that it is computed of, and None where an operator has none; what is
            asked about them; or what stands for them (see `over`).
        checks: Whether it raises a `LawError` for some numbers.
    """

    compute: Callable[..., Weights]
    operands: tuple[Lazy, ...] = ()
    tensors: tuple[Any, ...] = ()
    checks: bool = False

    def evaluate(
        self,
        device: torch.device | None = None,
        read: Callable[[Any], Any] = evaluate,
    ) -> Weights:
        """Compute kernel and bias, each step once, and without recursion: chains may be long.

        Args:
            device: Where; by default where the parameters are.
            read: Gives the tensors for what stands for them, and the answers.
        """
        uses: dict[int, int] = {}
        for node in self._nodes():
            for operand in node.operands:
                uses[id(operand)] = uses.get(id(operand), 0) + 1
        pending = [self]
        done: dict[int, Weights] = {}
        begun: set[int] = set()
        computed: set[int] = set()

        def result(operand: Lazy) -> Weights:
            """What was computed once: the next step may overwrite it, but the last one has it."""
            uses[id(operand)] -= 1
            if not uses[id(operand)]:
                return done.pop(id(operand))
            kernel, bias = done[id(operand)]
            return kernel.clone(), None if bias is None else bias.clone()

        while pending:
            node = pending[-1]
            if id(node) not in begun:
                begun.add(id(node))
                pending.extend(reversed(node.operands))
                continue
            pending.pop()
            if id(node) in computed:
                continue
            computed.add(id(node))
            kernel, bias = node.compute(*map(result, node.operands), *map(read, node.tensors))
            if device is not None:
                kernel = kernel.to(device)
                bias = None if bias is None else bias.to(device)
            done[id(node)] = kernel, bias
        return done.pop(id(self))

    def over(self, stand_in: Callable[[Any], Any]) -> Lazy:
        """The same computation of other things in place of its tensors."""
        pending, done = [self], dict[int, Lazy]()
        while pending:
            node = pending[-1]
            missing = [operand for operand in node.operands if id(operand) not in done]
            if missing:
                pending.extend(missing)
                continue
            operands = tuple(done[id(operand)] for operand in node.operands)
            tensors = tuple(map(stand_in, node.tensors))
            done[id(node)] = replace(node, operands=operands, tensors=tensors)
            pending.pop()
        return done[id(self)]

    @property
    def fixed(self) -> bool:
        """Whether it is computed of no parameters, so that it is the same at any time."""
        return all(tensor is None for node in self._nodes() for tensor in node.tensors)

    @property
    def conditional(self) -> bool:
        """Whether it can be computed for some numbers only."""
        return any(node.checks for node in self._nodes())

    def leaves(self) -> list[Any]:
        """The tensors that it is computed of, whatever is computed of them meanwhile."""
        tensors = (tensor for node in self._nodes() for tensor in node.tensors)
        return [leaf for tensor in tensors for leaf in leaves(origin_of(tensor))]

    def _nodes(self) -> Iterator[Lazy]:
        """This and all that has to be computed before."""
        pending = [self]
        seen: set[int] = set()  # torch.compile, which follows live operators, knows no set[int]()
        while pending:
            node = pending.pop()
            if id(node) not in seen:
                seen.add(id(node))
                pending.extend(node.operands)
                yield node


def exact(tensor: Tensor) -> Tensor:
    """A fresh float64 copy of a parameter."""
    return tensor.to(torch.float64, copy=True, memory_format=torch.contiguous_format)


def place(
    target: Tensor,
    groups: int,
    kernel: Tensor,
    kernel_groups: int,
    starts: Sequence[int],
    steps: Sequence[int],
) -> None:
    """Add a kernel into a larger one, in place, whose groups divide its own.

    Per axis, ``starts`` has the index in the target of the kernel's first tap, ``steps`` the
    distance there between two of its taps.
    """
    target = target[_window(starts, steps, kernel.shape[2:])]
    taps = target.shape[2:]
    merged = kernel_groups // groups
    rows, columns = target.shape[0] // kernel_groups, target.shape[1] // merged
    # Block (j, j) of every target group is the kernel of its j-th smaller group.
    blocks = target.unflatten(1, (merged, columns)).unflatten(0, (groups, merged, rows))
    diagonal = blocks.diagonal(0, 1, 3).movedim(-1, 1)
    diagonal += kernel.reshape(groups, merged, rows, columns, *taps)


def _window(starts: Sequence[int], steps: Sequence[int], sizes: Sequence[int]) -> tuple[slice, ...]:
    """Where the taps of a kernel lie in a larger one."""
    taps = (
        slice(start, start + step * (size - 1) + 1, step)
        for start, step, size in zip(starts, steps, sizes, strict=True)
    )
    return (slice(None), slice(None), *taps)


def add(
    first: Weights,
    second: Weights,
    *,
    shape: tuple[int, ...],
    groups: int,
    lattices: Sequence[tuple[int, Sequence[int], Sequence[int]]],
) -> Weights:
    """Add two kernels on a common lattice.

    For either operand ``lattices`` has its groups, and per axis its first index and its step in the
    result.
    """
    operands = [(first[0], *lattices[0]), (second[0], *lattices[1])]
    operands.sort(key=lambda operand: operand[0].numel(), reverse=True)
    kernel = operands[0][0]
    if tuple(kernel.shape) == shape and operands[0][1] == groups:
        del operands[0]
    else:
        kernel = kernel.new_zeros(shape)
    for part, part_groups, starts, steps in operands:
        place(kernel, groups, part, part_groups, starts, steps)
    biases = [bias for _, bias in (first, second) if bias is not None]
    if len(biases) == 2:
        return kernel, biases[0] + biases[1]
    return kernel, biases[0].expand(shape[0]).clone() if biases else None


def stack(
    *parts: Weights,
    taps: Sequence[int],
    lattices: Sequence[tuple[int, Sequence[int], Sequence[int]]],
) -> Weights:
    """Put the rows of kernels below each other on a common lattice.

    For each part ``lattices`` has its groups if they become one, and per axis its first index
    and its step in the result.
    """
    rows = sum(kernel.shape[0] for kernel, _ in parts)
    first, groups = parts[0][0], lattices[0][0]
    result = first.new_zeros((rows, first.shape[1] * groups, *taps))
    at = 0
    for (kernel, _), (own, starts, steps) in zip(parts, lattices, strict=True):
        place(result[at : at + kernel.shape[0]], 1, kernel, own, starts, steps)
        at += kernel.shape[0]
    if all(bias is None for _, bias in parts):
        return result, None
    zeros = (first.new_zeros(1) if bias is None else bias for _, bias in parts)
    biases = [bias.expand(kernel.shape[0]) for bias, (kernel, _) in zip(zeros, parts, strict=True)]
    return result, torch.cat(biases)


def compose(
    inner: Weights,
    outer: Weights,
    *,
    shape: tuple[int, ...],
    groups: int,
    inner_groups: int,
    outer_groups: int,
    inner_steps: Sequence[int],
    outer_steps: Sequence[int],
) -> Weights:
    """Compose two kernels, the outer one reading what the inner one writes.

    The steps are, per axis, the distance in the result between two taps of either kernel.
    """
    kernel, bias = inner
    outer_kernel, outer_bias = outer
    channels = kernel.shape[0]
    constant = _response(outer_kernel, outer_groups, bias)
    if outer_bias is not None:
        constant = outer_bias if constant is None else constant + outer_bias
    if constant is not None:
        constant = constant.expand(shape[0]).clone()
    outer_taps = outer_kernel.shape[2:]
    if channels == inner_groups and kernel.shape[1:].numel() == 1 and outer_kernel.shape == shape:
        factors = kernel.view(outer_groups, 1, channels // outer_groups, *(1,) * len(outer_taps))
        blocks = outer_kernel.view(outer_groups, -1, *factors.shape[2:3], *outer_taps)
        # No second large kernel, but where the gradient of the constant needs the first.
        scaled = blocks.mul(factors) if torch.is_grad_enabled() else blocks.mul_(factors)
        return scaled.view(shape), constant
    multiply = _multiplication(kernel, inner_groups, outer_kernel, outer_groups, groups, channels)
    if outer_taps.numel() == 1 and kernel.shape[2:] == shape[2:]:
        return multiply(outer_kernel.flatten(1)), constant  # no second large kernel
    result = kernel.new_zeros(shape)
    for tap in product(*(range(size) for size in outer_taps)):
        index: tuple[slice | int, ...] = (slice(None), slice(None), *tap)
        starts = [at * step for at, step in zip(tap, outer_steps, strict=True)]
        result[_window(starts, inner_steps, kernel.shape[2:])] += multiply(outer_kernel[index])
    return result, constant


def _response(kernel: Tensor, groups: int, constant: Tensor | None) -> Tensor | None:
    """What a kernel gives for a constant input, away from every border."""
    if constant is None:
        return None
    total = kernel.flatten(2).sum(2) if kernel.dim() > 2 else kernel
    rows, columns = total.shape
    constant = constant.expand(columns * groups)
    return (total.view(groups, rows // groups, columns) @ constant.view(groups, columns, 1)).view(
        rows
    )


def _multiplication(
    inner: Tensor,
    inner_groups: int,
    outer: Tensor,
    outer_groups: int,
    groups: int,
    channels: int,
) -> Callable[[Tensor], Tensor]:
    """How one tap of the outer kernel, of shape (out, channels / groups), multiplies the inner."""
    taps = inner.shape[2:]
    ones = (1,) * len(taps)
    if outer_groups == channels == outer.shape[0]:
        times = inner.mul_ if outer.shape[2:].numel() == 1 else inner.mul
        return lambda tap: times(tap.view(-1, 1, *ones))
    if inner_groups == channels and inner.shape[1] == 1:
        columns = channels // outer_groups
        scale = inner.view(outer_groups, 1, columns, *taps)

        def scale_columns(tap: Tensor) -> Tensor:
            rows = tap.shape[0]
            blocks = tap.view(outer_groups, rows // outer_groups, columns, *ones)
            return (blocks * scale).view(rows, columns, *taps)

        return scale_columns
    inner = regroup(inner, inner_groups, groups)
    right = inner.reshape(groups, channels // groups, -1)

    def mix(tap: Tensor) -> Tensor:
        tap = regroup(tap, outer_groups, groups)
        left = tap.view(groups, -1, channels // groups)
        return (left @ right).view(tap.shape[0], inner.shape[1], *taps)

    return mix


def regroup(kernel: Tensor, kernel_groups: int, groups: int) -> Tensor:
    """Write a grouped kernel with fewer groups, zeros between the old ones."""
    if kernel_groups == groups:
        return kernel
    shape = (kernel.shape[0], kernel.shape[1] * (kernel_groups // groups), *kernel.shape[2:])
    axes = kernel.dim() - 2
    result = kernel.new_zeros(shape)
    place(result, groups, kernel, kernel_groups, (0,) * axes, (1,) * axes)
    return result


def lattice(*parts: tuple[int, int, int]) -> tuple[int, int, int]:
    """The coarsest lattice that holds the taps of all parts.

    Each, and the result, is the offset of the first tap, the distance and the number of taps.
    """
    first = min(start for start, _, _ in parts)
    last = max(start + step * (size - 1) for start, step, size in parts)
    distance = 0
    for start, step, size in parts:
        distance = gcd(distance, start - first)
        if size > 1:
            distance = gcd(distance, step)
    distance = distance or 1
    return first, distance, (last - first) // distance + 1
