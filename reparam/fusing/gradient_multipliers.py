r"""What trains one operator like its branches: its gradient times a factor per weight.

If each weight of the operator is a sum of weights of branches with constant factors s_b, one of
each branch, then a step of gradient descent on the branches is one on the operator::

    W = sum over b of s_b * w_b
    dW = sum over b of s_b * dw_b = -lr * (sum over b of s_b ** 2) * g

(RepOptimizers, arXiv 2205.15242, section 3). A step of Adam is about the sign of the gradient::

    dW = -lr * (sum over b of |s_b|) * sign(g)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reparam.errors import ReparamError
from reparam.fusing.driver import fuse
from reparam.modules import Choice

_BOUND = 1e-9
"""Largest relative difference from a map that is diagonal, in float64."""


def gradient_multipliers(
    model: nn.Module, example_inputs: Any = None, *, power: int = 2, keep: Choice = None
) -> dict[str, Tensor]:
    """What the gradients of a fused model are multiplied with, to be trained like its branches.

    So one operator is trained, at its price, as if its branches were: multiply the gradient of each
    parameter named here before every step of the optimiser. The factors that scale the branches
    have to be constants, as in the block `reparam.blocks.csla`.

    Args:
        model: The model with branches, in eval mode.
        example_inputs: As for `fuse`.
        power: 2 for gradient descent, 1 for optimisers that divide a gradient by its size, such as
            AdamW.
        keep: As for `fuse`: the norms, where these are trained, too, as layers of their own.

    Returns:
        For each parameter of a new operator, by its name in the fused model, one factor per entry.

    Shape:
        That of the parameter.

    Raises:
        ReparamError: If the power is another number, or if a weight depends on several weights of
            one branch, or on parameters that scale others: then no factor per weight does it.

    Examples:
        >>> import torch
        >>> import reparam
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1, bias=False)).eval()
        >>> branches = reparam.expand(model, reparam.blocks.csla())
        >>> factors = reparam.gradient_multipliers(branches)["0.weight"]
        >>> factors[0, 0]  # the 3x3 twice, and a 1x1 in the middle
        tensor([[2., 2., 2.],
                [2., 3., 2.],
                [2., 2., 2.]])
    """
    if power not in (1, 2):
        raise ReparamError(f"power={power!r}: expected 2 for gradient descent, 1 for AdamW")
    live = fuse(model, example_inputs, live=True, keep=keep)
    types = {name: parameter.dtype for name, parameter in live.named_parameters()}
    live = live.double()
    multipliers: dict[str, Tensor] = {}
    for row in live.reparam_report.fused:  # type: ignore[union-attr]
        operator: Any = live.get_submodule(row.name)
        trained = {name: p for name, p in live.named_parameters() if p.requires_grad}
        for own in ("weight", "bias"):
            with torch.enable_grad():
                made = getattr(operator, own, None)
                if made is None or not made.requires_grad:
                    continue
                name = f"{row.name}.{own}"
                factor, dtype = _multiplier(name, made, trained, types, power)
            multipliers[name] = factor.to(dtype)
    return multipliers


def _multiplier(
    name: str,
    made: Tensor,
    trained: Mapping[str, nn.Parameter],
    types: Mapping[str, torch.dtype],
    power: int,
) -> tuple[Tensor, torch.dtype]:
    """The factor of one parameter of an operator, and its type."""
    probe = _probe(made).requires_grad_()
    gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
        made, list(trained.values()), probe, create_graph=True, allow_unused=True
    )
    total, dtype = torch.zeros_like(made), torch.float32
    for (source, parameter), gradient in zip(trained.items(), gradients, strict=True):
        if gradient is None:
            continue
        scales = _times(gradient, torch.ones_like(parameter), probe)
        there_and_back = _times(gradient, gradient.detach(), probe)
        error = (there_and_back - scales.square() * probe.detach()).abs().max()
        if error > _BOUND * there_and_back.abs().max().clamp_min(1e-300):
            raise ReparamError(
                f"{name} is no sum of weights of {source} with constant factors, one of each "
                "branch: no factor for its gradient trains it like its branches"
            )
        total += scales.abs() ** power
        dtype = types[source]
    return total.detach(), dtype


def _times(gradient: Tensor, direction: Tensor, probe: Tensor) -> Tensor:
    """How a parameter's change in a direction changes what is computed of it.

    What is computed has the gradient J^T v for v, which is linear in v: so its own gradient for a
    direction u is J u.
    """
    (change,) = torch.autograd.grad(gradient, probe, direction, retain_graph=True)
    return change.detach()


def _probe(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    return probe.to(like.device)
