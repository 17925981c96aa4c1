"""Sums and constants that broadcast, and branches that do not meet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam import ReparamError
from tests.refusals.checking import (
    EXACT,
    Network,
    assert_refused,
    assert_reported,
    differs,
    folded,
    images,
    ready,
)
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run


def sum_of(a: nn.Module, b: nn.Module) -> nn.Module:
    return ready(Network(lambda self, x: self.a(x) + self.b(x), a=a, b=b))


def square(channels: int, size: int) -> Tensor:
    return images(channels, size)[..., :size].contiguous()


def test_branches_of_different_strides() -> None:
    """On images of this size both branches give as many pixels."""
    model = sum_of(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=3))

    def naive(x: Tensor) -> Tensor:
        return F.conv2d(x, model.a.weight + model.b.weight, model.a.bias + model.b.bias, 1, 1)

    assert_refused(model, square(4, 5), "add", "different strides", naive=naive)


def test_branches_whose_sizes_agree_only_by_rounding() -> None:
    """Equal on even sizes; on 3×3 one branch gives a pixel, and the sum broadcasts."""
    model = sum_of(nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 2, stride=2))
    weight = model.a.weight.detach().clone()
    weight[:, :, 1:, 1:] += model.b.weight.detach()

    def naive(x: Tensor) -> Tensor:
        return F.conv2d(x, weight, model.a.bias + model.b.bias, 2, 1)

    assert not differs(naive, model, square(4, 6))
    assert_refused(model, square(4, 3), "add", "the branches differ in size", naive=naive)


def test_a_branch_of_one_pixel() -> None:
    model = sum_of(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 5))

    def naive(x: Tensor) -> Tensor:
        weight = model.b.weight.clone()
        weight[:, :, 2:3, 2:3] += model.a.weight
        return F.conv2d(x, weight, model.a.bias + model.b.bias, 1, 2)

    assert_refused(model, square(4, 5), "add", "the branches differ in size", naive=naive)


def test_one_channel_that_is_added_to_many() -> None:
    model = ready(Network(lambda self, x: x + self.conv(x), conv=nn.Conv2d(1, 4, 3, padding=1)))

    def naive(x: Tensor) -> Tensor:
        weight = model.conv.weight.clone()
        weight[0, 0, 1, 1] += 1
        return F.conv2d(x, weight, model.conv.bias, 1, 1)

    assert_refused(model, images(1), "add", "the branches differ in channels", naive=naive)


def test_a_constant_per_pixel() -> None:
    model = ready(
        Network(
            lambda self, x: self.conv(x) + self.position,
            conv=nn.Conv2d(4, 4, 3, padding=1),
            position=torch.randn(1, 4, 7, 8),
        )
    )

    def naive(x: Tensor) -> Tensor:
        return model.conv(x) + model.position.mean((2, 3), keepdim=True)

    assert_refused(model, images(), "add", "varies along more than one axis", naive=naive)


def test_a_constant_per_column() -> None:
    """As many columns as channels: only the axis tells that this is no factor per channel."""
    model = ready(
        Network(
            lambda self, x: self.conv(x) * self.window,
            conv=nn.Conv2d(4, 8, 1),
            window=torch.randn(8),
        )
    )

    def naive(x: Tensor) -> Tensor:
        return model.conv(x) * model.window[:, None, None]

    x, reason = images(size=7), "their channels lie along different axes"
    assert_refused(model, x, "mul", reason, naive=naive, example_inputs=x)
    assert_refused(model, x, "mul", "pass example_inputs", naive=naive)


def test_a_constant_that_adds_an_axis() -> None:
    model = ready(
        Network(
            lambda self, x: self.linear(x) * self.gamma,
            linear=nn.Linear(4, 4),
            gamma=torch.randn(4, 1, 1),
        )
    )
    x = torch.randn(3, 4, dtype=torch.float64)

    def naive(x: Tensor) -> Tensor:
        return model.linear(x) * model.gamma.flatten()

    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert_reported(fused.reparam_report, "mul", "axes")
    assert differs(naive, model, x)


def test_batch_norm_of_an_unknown_axis() -> None:
    """The channels of a batch norm are axis 1, those of a linear layer the last one."""
    model = ready(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    weight, bias = folded(model[1], model[0])
    tokens = torch.randn(2, 4, 4, dtype=torch.float64)
    assert differs(lambda x: F.linear(x, weight, bias), model, tokens)
    vectors = torch.randn(3, 4, dtype=torch.float64)
    for example_inputs in (None, vectors):
        fused = reparam.fuse(model, example_inputs)
        assert count_operators(fused, (vectors,)).total == 1
        assert relative_error(run(fused, (vectors,)), run(model, (vectors,))) <= EXACT
        with pytest.raises(ReparamError, match=r"1 .BatchNorm1d. was fused for values of 2 axes"):
            fused(tokens)


def test_batch_norm_of_an_axis_that_nothing_tells() -> None:
    norm = nn.BatchNorm1d(4)
    model = ready(Network(lambda m, x: m.norm(m.layer(x).mT.mT), layer=nn.Linear(4, 4), norm=norm))
    weight, bias = folded(norm, model.layer)
    assert_refused(
        model,
        torch.randn(2, 4, 4, dtype=torch.float64),
        "norm",
        "the number of axes of its input is not known",
        naive=lambda x: F.linear(x, weight, bias),
    )


def test_batch_norm_of_another_axis() -> None:
    model = ready(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    weight, bias = folded(model[1], model[0])
    tokens = torch.randn(2, 4, 4, dtype=torch.float64)
    assert_refused(
        model,
        tokens,
        "1",
        "channels lie along different axes",
        naive=lambda x: F.linear(x, weight, bias),
        example_inputs=tokens,
    )


def test_batch_norm_of_an_image_without_a_batch() -> None:
    """Here axis 1 is the length, of as many positions as there are channels."""
    model = ready(nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)))
    weight, bias = folded(model[1], model[0])
    x = torch.randn(4, 4, dtype=torch.float64)
    assert_refused(
        model,
        x,
        "1",
        "channels lie along different axes",
        naive=lambda x: F.conv1d(x, weight, bias),
        example_inputs=x,
    )


def test_branches_of_two_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.a(x) + self.b(y)

    model = ready(Two())
    inputs = images(), images().flip(0)
    fused = reparam.fuse(model)
    assert torch.equal(run(fused, inputs), run(model, inputs))
    assert_reported(fused.reparam_report, "add", "do not come from one value")


def test_a_convolution_beside_a_transposed_one() -> None:
    model = sum_of(nn.Conv2d(4, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 3, padding=1))

    def naive(x: Tensor) -> Tensor:
        return F.conv2d(x, model.a.weight + model.b.weight, model.a.bias + model.b.bias, 1, 1)

    reason = "a convolution and a transposed convolution do not add up"
    assert_refused(model, images(), "add", reason, naive=naive)


def test_a_product_of_two_values() -> None:
    model = ready(
        Network(
            lambda self, x: self.conv(x) * x.mean((2, 3), keepdim=True), conv=nn.Conv2d(4, 4, 1)
        )
    )

    def naive(x: Tensor) -> Tensor:
        return model.conv(x) * x.mean()

    assert_refused(model, images(), "mul", "both depend on the input", naive=naive)


def test_a_division_that_rounds() -> None:
    def rounded(self: Any, x: Tensor) -> Tensor:
        return torch.div(self.conv(x), 0.3, rounding_mode="floor")

    model = ready(Network(rounded, conv=nn.Conv2d(4, 4, 1)))
    assert_refused(model, images(), "div", "rounds", naive=lambda x: model.conv(x) / 0.3)


def test_a_leaky_relu_is_affine_only_with_slope_one() -> None:
    one, half = (
        ready(nn.Sequential(nn.Conv2d(4, 4, 1), nn.LeakyReLU(slope), nn.Conv2d(4, 4, 1)))
        for slope in (1.0, 0.5)
    )
    x = images()
    fused = reparam.fuse(one)
    assert count_operators(fused, (x,)).total == 1
    assert relative_error(run(fused, (x,)), run(one, (x,))) <= EXACT
    assert_refused(half, x, "1", "not an affine operator", naive=lambda x: half[2](half[0](x)))
