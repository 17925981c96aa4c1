"""An expanded layer by itself, where no neighbour joins it, becomes a layer of its kind again."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from reparam.algebra import AffineConv, identity
from reparam.errors import Refusal
from reparam.expansion.expanded_layers import ExpandedLayer, in_a_row, sum_of_branches
from reparam.modules import copy_model

_BOUND = 1e-9
"""The largest relative difference of two layers, in float64, that are to be the same."""


def collapsed(module: ExpandedLayer) -> tuple[nn.Module, AffineConv] | Refusal:
    """The layer that computes what an expanded one does, its weights rounded once, and its form.

    Whoever calls it finds the same, so that nothing of the code around it need be known.
    """
    layer: Any = copy.deepcopy(module.main_layer)
    _, total = forms_of(module)
    if isinstance(total, Refusal):
        return total
    if layer.weight.is_meta:
        return layer, total
    kernel, bias = total.weights.evaluate(layer.weight.device)
    if bias is not None and layer.bias is None:
        layer.bias = nn.Parameter(bias.to(layer.weight), layer.weight.requires_grad)
    write(layer, kernel, bias)
    return difference(module, layer) or (layer, total)


def write(layer: Any, kernel: Tensor, bias: Tensor | None) -> None:
    """Give a layer a kernel and a bias, rounded to its type."""
    with torch.no_grad():
        layer.weight.copy_(kernel)
        if bias is not None:
            layer.bias.copy_(bias)


def forms_of(module: ExpandedLayer) -> tuple[AffineConv, AffineConv | Refusal]:
    """The form of the layer alone, and that of all branches together, which has to be as large."""
    layer: Any = module.main_layer
    x = identity("x", rank=2 + len(getattr(layer, "kernel_size", ())))
    own: Any = in_a_row([layer], x)  # never refused: it is one of torch's convolutions
    total = sum_of_branches(module, x)
    if isinstance(total, AffineConv) and (total.axes, total.groups or 1) != (
        own.axes,
        own.groups or 1,
    ):
        return own, Refusal("a branch reads more of the input than the layer does")
    return own, total


def difference(module: ExpandedLayer, layer: nn.Module) -> Refusal | None:
    """Why an expanded layer does not compute what a layer does: they run on a random input."""
    main: Any = module.main_layer
    if main.weight.is_meta:
        return None
    generator = torch.Generator().manual_seed(0)
    shape = [3, getattr(main, "in_features", None) or main.in_channels]
    names = ("kernel_size", "dilation", "stride") if hasattr(main, "kernel_size") else ()
    for k, d, s in zip(*(getattr(main, name) for name in names), strict=True):
        shape.append(d * (k - 1) + 2 * s + 2)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(main.weight.device)
    exact, result = _exact(layer, x), _exact(module, x)
    if result.shape != exact.shape:
        return Refusal(f"the block makes another shape, {tuple(result.shape)}")
    dtype = main.weight.dtype
    bound = _BOUND if dtype == torch.float64 else 64 * torch.finfo(dtype).eps
    error = float((result - exact).abs().max() / exact.abs().max().clamp_min(1e-30))
    if error <= bound:
        return None
    return Refusal(f"the block computes something else, by {error:.1e}")


def _exact(module: nn.Module, x: Tensor) -> Tensor:
    """What a module computes in float64, in eval mode."""
    result: Tensor = copy_model(module).double().eval()(x)
    return result
