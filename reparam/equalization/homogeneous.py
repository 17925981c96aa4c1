r"""Operators that are no affine maps but that a positive scale may cross.

f(s * x) = s * f(x)        for every s > 0 per channel

What an affine operator does to a scale, its rule tells already (`reparam.rules`). This table has
the others: rectifiers, maxima and what only hands a value on, in every spelling.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import fx, nn

from reparam.analysis.facts import Facts
from reparam.analysis.lifting import target_of
from reparam.modules.tree import fetch, has_hooks
from reparam.rules.calling import in_names_of

aten = torch.ops.aten

Law = Callable[..., "Homogeneous | None"]

LawFunction = TypeVar("LawFunction", bound=Law)


@dataclass(frozen=True)
class Homogeneous:
    """What a law says of one call of its operator.

    Args:
        operands: The operands that have to share the scale of the value.
        axes: How many last axes it mixes; the channels have to lie before them.
    """

    operands: tuple[Any, ...]
    axes: int = 0


_LAWS: dict[Any, Law] = {}


def law_of(node: fx.Node, facts: Facts) -> Homogeneous | None:
    """What the law of a node's operator says; None if it has none, or not for this call.

    Args:
        node: The node.
        facts: What is known of its graph.
    """
    target: Any = target_of(node, facts.root)
    if isinstance(target, torch._ops.OpOverload):
        target = target.overloadpacket
    leading: tuple[Any, ...] = ()
    if node.op == "call_module":
        module = fetch(facts.root, str(node.target))
        if has_hooks(module) or "forward" in vars(module):
            return None
        leading = (module,)
    law = _LAWS.get(target) if target.__hash__ is not None else None
    if law is None:
        return None
    try:
        found = law(*leading, *node.args, **in_names_of(law, node.kwargs))
    except TypeError:  # it is called with what the law does not know
        return None
    if found is None or not set(facts.operands(node)) <= set(found.operands):
        return None
    return found


def _for(*targets: Any) -> Callable[[LawFunction], LawFunction]:
    """Enter a law for every spelling of its operator."""

    def enter(law: LawFunction) -> LawFunction:
        _LAWS.update(dict.fromkeys(targets, law))
        return law

    return enter


# -- Position by position -------------------------------------------------------------------------


@_for(nn.ReLU, nn.LeakyReLU, nn.PReLU)
def _rectifier_module(module: nn.Module, input: Any) -> Homogeneous:
    del module
    return Homogeneous((input,))


@_for(
    F.relu,
    torch.relu,
    torch.relu_,
    torch.Tensor.relu,
    torch.Tensor.relu_,
    aten.relu,
    aten.relu_,
    torch.abs,
    torch.absolute,
    operator.abs,
    torch.Tensor.abs,
    torch.Tensor.abs_,
    torch.Tensor.absolute,
    torch.Tensor.__abs__,
    aten.abs,
    torch.detach,
    torch.Tensor.detach,
    aten.detach,
)
def _rectifier(input: Any, inplace: Any = False) -> Homogeneous:
    del inplace
    return Homogeneous((input,))


@_for(F.leaky_relu, F.leaky_relu_, aten.leaky_relu, aten.leaky_relu_)
def _leaky(input: Any, negative_slope: Any = 0.01, inplace: Any = False) -> Homogeneous:
    del negative_slope, inplace
    return Homogeneous((input,))


@_for(F.prelu, torch.prelu, torch.Tensor.prelu, aten.prelu, aten._prelu_kernel)
def _parametric(input: Any, weight: Any) -> Homogeneous:
    del weight  # it is no operand unless it depends on the model's input, which is refused
    return Homogeneous((input,))


@_for(torch.clamp, torch.clip, torch.Tensor.clamp, torch.Tensor.clamp_, aten.clamp, aten.clamp_)
def _clamp(input: Any, min: Any = None, max: Any = None) -> Homogeneous | None:
    bounds = (min, max)
    known = all(bound is None or (type(bound) in (int, float) and bound == 0) for bound in bounds)
    return Homogeneous((input,)) if known else None


@_for(torch.clamp_min, torch.Tensor.clamp_min, torch.Tensor.clamp_min_, aten.clamp_min)
def _clamp_min(input: Any, min: Any) -> Homogeneous | None:
    return _clamp(input, min)


@_for(
    torch.maximum,
    torch.minimum,
    torch.fmax,
    torch.fmin,
    torch.Tensor.maximum,
    torch.Tensor.minimum,
    aten.maximum,
    aten.minimum,
)
def _extreme(input: Any, other: Any) -> Homogeneous | None:
    return Homogeneous((input, other))


# -- Over the last axes ---------------------------------------------------------------------------


@_for(
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)
def _max_pool_module(module: nn.MaxPool2d, input: Any) -> Homogeneous | None:
    axes = int(type(module).__name__[-2])
    return None if module.return_indices else Homogeneous((input,), axes)


def _max_pool(axes: int) -> Law:
    def law(
        input: Any,
        kernel_size: Any = None,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: Any = False,
        return_indices: Any = False,
    ) -> Homogeneous | None:
        del kernel_size, stride, padding, dilation, ceil_mode
        return Homogeneous((input,), axes) if return_indices is False else None

    return law


def _adaptive_max_pool(axes: int) -> Law:
    def law(input: Any, output_size: Any, return_indices: Any = False) -> Homogeneous | None:
        del output_size
        return Homogeneous((input,), axes) if return_indices is False else None

    return law


def _interpolation(axes: int) -> Law:
    def law(input: Any, *sizes: Any, **more: Any) -> Homogeneous:
        del sizes, more
        return Homogeneous((input,), axes)

    return law


for _count, _pools, _adaptive, _upsamplings in (
    (1, (F.max_pool1d, torch.max_pool1d, aten.max_pool1d), F.adaptive_max_pool1d, "nearest linear"),
    (
        2,
        (F.max_pool2d, torch.max_pool2d, aten.max_pool2d),
        F.adaptive_max_pool2d,
        "nearest bilinear bicubic",
    ),
    (
        3,
        (F.max_pool3d, torch.max_pool3d, aten.max_pool3d),
        F.adaptive_max_pool3d,
        "nearest trilinear",
    ),
):
    _for(*_pools)(_max_pool(_count))
    _for(_adaptive)(_adaptive_max_pool(_count))
    _for(*(getattr(aten, f"upsample_{kind}{_count}d") for kind in _upsamplings.split()))(
        _interpolation(_count)
    )
