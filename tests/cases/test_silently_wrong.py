"""Answers that other libraries changed without a word.

| case | tests |
| --- | --- |
| a conv called twice, batch-normed on one path only | `refusals/sharing.py`, `test_sharing.py` |
| a conv whose weight `forward` also reads | `refusals/sharing.py`, `test_sharing.py` |
| a shared batch norm, tied weights, two names | `refusals/sharing.py`, `test_sharing.py` |
| the fold drops the scale on a bias | `test_the_bias_of_...` |
| grouped convolution + constant that varies in space | `test_a_constant_...` |
| pad moved into a pool or a convolution | `..._borders.py`, `refusals/borders.py` |
| convolutions merged across the padding between them | `..._borders.py` |
| an inner value that is an output | `test_values_returned_from_the_middle` |
| converted in training mode | `refusals/calls.py`: `test_a_fusion_in_training_mode_...` |
| in place on a value that a second consumer reads | `test_writing.py` |
| broadcasting sums | `test_sums_that_broadcast`, `refusals/sums.py` |
| a batch norm with an activation inside | `refusals/sharing.py`, `test_silently_nothing.py` |
| strides, even kernels, asymmetric, same and other padding | `..._borders.py` |
| hand-written conversions that are wrong | `test_by_hand_...` |
| `forward` and `__call__` replaced, state, randomness | `test_hostile_*.py` |
| hooks on what is fused | `test_hooks.py` |
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases.checking import answers, assert_exact, assert_left
from tests.refusals.checking import Network, assert_reported, differs, folded, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error

C = 4


# -- A bias that is already there -----------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, C], ids=["dense", "grouped", "depthwise"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_the_bias_of_a_convolution_is_scaled(groups: int, axes: int) -> None:
    """ultralytics/yolov3#807 and Tencent/ncnn#1339: b_conv + b_bn instead of b_conv·γ/σ + b_bn."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](C, C, 3, groups=groups)
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes - 1](C)
    model = ready(nn.Sequential(conv, norm))
    x = torch.randn(2, C, *(5,) * axes, dtype=torch.float64)
    weight, bias = folded(norm, conv)
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    dropped = bias - conv.bias * factor + conv.bias
    convolve = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    assert differs(lambda x: convolve(x, weight, dropped, groups=groups), model, x)
    assert_exact(model, x, total=1)


@pytest.mark.parametrize("groups", [1, 2, C], ids=["dense", "grouped", "depthwise"])
def test_the_bias_of_a_transposed_convolution_is_scaled(groups: int) -> None:
    """ultralytics/yolov3#807, for the layer that enlarges."""
    up = nn.ConvTranspose2d(C, C, 3, stride=2, groups=groups)
    assert_exact(ready(nn.Sequential(up, nn.BatchNorm2d(C))), images(), total=1)


def test_the_bias_of_a_linear_layer_is_scaled() -> None:
    """ultralytics/yolov3#807, for a layer without space."""
    x = torch.randn(3, C, dtype=torch.float64)
    model = ready(nn.Sequential(nn.Unflatten(1, (C, 1, 1)), nn.Flatten(), nn.Linear(C, C)))
    assert_exact(ready(nn.Sequential(*model, nn.Unflatten(1, (C, 1, 1)), nn.BatchNorm2d(C))), x)


# -- Constants that vary in space -----------------------------------------------------------------


@pytest.mark.parametrize("operation", [torch.add, torch.sub, torch.mul])
@pytest.mark.parametrize("groups", [2, C])
@pytest.mark.parametrize(
    "shape", [(1, C, 7, 8), (C, 7, 8), (7, 8), (8,), (1, 1, 7, 1), (1, C, 1, 8), (2, 1, 1, 1)]
)
def test_a_constant_that_varies_in_space_stays_beside_a_grouped_convolution(
    shape: tuple[int, ...], groups: int, operation: Callable[..., Tensor]
) -> None:
    """microsoft/onnxruntime#12498: the constant was folded into the bias."""
    model = ready(
        Network(
            lambda self, x: operation(self.conv(x), self.constant),
            conv=nn.Conv2d(C, C, 3, padding=1, groups=groups),
            constant=torch.randn(shape),
        )
    )
    fused = assert_exact(model, images())
    assert fused.reparam_report.fused == []
    assert_reported(fused.reparam_report, operation.__name__, "")


@pytest.mark.parametrize("shape", [(1, C, 1, 1), (C, 1, 1), (1, 1, 1), (1,), (1, 1, 1, 1), ()])
@pytest.mark.parametrize("groups", [1, 2, C])
def test_a_constant_per_channel_is_folded(shape: tuple[int, ...], groups: int) -> None:
    """microsoft/onnxruntime#12498: the same addition where it may be folded."""
    model = ready(
        Network(
            lambda self, x: self.conv(x) + self.constant,
            conv=nn.Conv2d(C, C, 3, padding=1, groups=groups),
            constant=torch.randn(shape),
        )
    )
    assert_exact(model, images(), total=1)


# -- Values returned from the middle --------------------------------------------------------------


class Pair(NamedTuple):
    """An output of a class of its own."""

    early: Tensor
    late: Tensor


RETURNS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda early, late: (early, late),
    "list": lambda early, late: [late, early],
    "dictionary": lambda early, late: {"early": early, "late": late},
    "named tuple": Pair,
    "nested": lambda early, late: ({"features": [early, (late,)]}, late),
    "twice": lambda early, late: (early, early, late, late),
    "a view": lambda early, late: (early.flatten(1), late),
    "a part": lambda early, late: (early[:, :1], late),
    "its shape": lambda early, late: (early.shape, late),
    "detached": lambda early, late: (early.detach(), late),
    "none": lambda early, late: (early, None, late),
}


@pytest.mark.parametrize("returned", RETURNS)
def test_values_returned_from_the_middle(returned: str) -> None:
    """microsoft/onnxruntime#4110 and #28559: an inner value of the pattern is an output."""

    def forward(self: Any, x: Tensor) -> Any:
        early = self.conv(x)
        return RETURNS[returned](early, self.norm(early))

    model = ready(Network(forward, conv=nn.Conv2d(C, C, 3), norm=nn.BatchNorm2d(C)))
    fused = assert_exact(model, images())
    if returned == "its shape":
        assert count_operators(fused, (images(),)).total == 1
    else:
        assert fused.reparam_report.fused == []
        assert_reported(fused.reparam_report, "norm", "also read by")


# -- Sums that broadcast --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "branch",
    [
        nn.Conv2d(C, C, (7, 8)), nn.AdaptiveAvgPool2d(1), nn.Conv2d(C, 1, 1),
        nn.Conv2d(C, C, (7, 1)), nn.AvgPool2d((1, 8)), nn.AdaptiveAvgPool2d((7, 1)),
    ],
    ids=["one pixel", "pooled", "one channel", "one row", "one column", "pooled rows"],
)  # fmt: skip
def test_sums_that_broadcast(branch: nn.Module) -> None:
    """A branch of one pixel, one row or one channel is repeated, which no convolution does."""
    model = ready(
        Network(lambda self, x: self.conv(x) + self.branch(x), conv=nn.Conv2d(C, C, 1),
                branch=branch)
    )  # fmt: skip
    assert_left(model, images(), place="add", reason="")


# -- Conversions written by hand ------------------------------------------------------------------


class Conversion(NamedTuple):
    """A block of branches, and how its conversion is often written."""

    block: Callable[[], nn.Module]
    careless: Callable[[Any, Tensor], Tensor]


def kernels(first: tuple[Tensor, Tensor], *others: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The sum of 3×3 kernels and, padded, 1×1 kernels."""
    weight, bias = first
    for other, shift in others:
        weight = weight + (other if other.shape[-1] == 3 else F.pad(other, (1, 1, 1, 1)))
        bias = bias + shift
    return weight, bias


def branches(groups: int = 1, bias: bool = False, eps: float = 1e-5) -> nn.Module:
    """A 3×3 and a 1×1 branch and a batch norm alone."""
    return Network(
        lambda self, x: self.norm3(self.conv3(x)) + self.norm1(self.conv1(x)) + self.skip(x),
        conv3=nn.Conv2d(C, C, 3, padding=1, groups=groups, bias=bias),
        norm3=nn.BatchNorm2d(C, eps),
        conv1=nn.Conv2d(C, C, 1, groups=groups, bias=bias),
        norm1=nn.BatchNorm2d(C, eps),
        skip=nn.BatchNorm2d(C, eps),
    )


def identity(norm: nn.Module, rows: int, groups: int) -> tuple[Tensor, Tensor]:
    """The batch norm of the identity as a kernel that is filled for some rows only."""
    unit = nn.Conv2d(C, C, 3, groups=groups, bias=False).double()
    with torch.no_grad():
        unit.weight.zero_()
        for row in range(rows):
            unit.weight[row, row % (C // groups), 1, 1] = 1
    return folded(norm, unit)


def convolve(x: Tensor, kernel: tuple[Tensor, Tensor], groups: int = 1) -> Tensor:
    return F.conv2d(x, *kernel, padding=1, groups=groups)


def first_group_only(m: Any, x: Tensor) -> Tensor:
    three, one = folded(m.norm3, m.conv3), folded(m.norm1, m.conv1)
    return convolve(x, kernels(three, one, identity(m.skip, C // 2, 2)), 2)


def one_bias_is_dropped(m: Any, x: Tensor) -> Tensor:
    three, (one, _) = folded(m.norm3, m.conv3), folded(m.norm1, m.conv1)
    return convolve(x, kernels(three, (one, torch.zeros(C)), identity(m.skip, C, 1)))


def another_eps(m: Any, x: Tensor) -> Tensor:
    for norm in (m.norm3, m.norm1, m.skip):
        norm.eps = 1e-5
    three, one = folded(m.norm3, m.conv3), folded(m.norm1, m.conv1)
    result = convolve(x, kernels(three, one, identity(m.skip, C, 1)))
    for norm in (m.norm3, m.norm1, m.skip):
        norm.eps = 0.1
    return result


def bias_of_the_convolution_is_dropped(m: Any, x: Tensor) -> Tensor:
    three, one = folded(m.norm3, m.conv3), folded(m.norm1, m.conv1)
    factor = m.norm3.weight / (m.norm3.running_var + m.norm3.eps).sqrt()
    three = three[0], three[1] - m.conv3.bias * factor
    return convolve(x, kernels(three, one, identity(m.skip, C, 1)))


def residual() -> nn.Module:
    return Network(lambda self, x: x + self.conv(x), conv=nn.Conv2d(C, C, 3, padding=1))


def residual_without_bias(m: Any, x: Tensor) -> Tensor:
    unit = torch.zeros_like(m.conv.weight)
    unit[range(C), range(C), 1, 1] = 1
    return F.conv2d(x, m.conv.weight + unit, padding=1)


CONVERSIONS = {
    "grouped": Conversion(lambda: branches(groups=2), first_group_only),
    "residual with bias": Conversion(residual, residual_without_bias),
    "bias of one branch": Conversion(branches, one_bias_is_dropped),
    "bias of a convolution": Conversion(
        lambda: branches(bias=True), bias_of_the_convolution_is_dropped
    ),
    "eps": Conversion(lambda: branches(eps=0.1), another_eps),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_by_hand_it_goes_wrong(name: str) -> None:
    """The published conversions of YOLOv7, RepViT, QARepVGG variants, RepSR and FMEN, measured."""
    conversion = CONVERSIONS[name]
    model, x = ready(conversion.block()), images()
    assert differs(lambda x: conversion.careless(model, x), model, x)
    assert_exact(model, x, total=1)


def test_by_hand_through_float32_it_loses_digits() -> None:
    """A conversion that calls `.float()` rounds a float64 model: 1e-8 instead of 1e-16."""
    model, x = ready(branches()), images()
    rounded = deepcopy(model).float().double()
    assert 1e-9 < relative_error(answers(rounded, x), answers(model, x)) < 1e-5
    fused = assert_exact(model, x, total=1)
    assert relative_error(answers(fused, x), answers(model, x)) < 1e-14
