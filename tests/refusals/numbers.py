"""Weights that cannot be folded: other dtypes, NaN, overflow, no numbers at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.refusals.checking import EXACT, Network, assert_reported, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run
from tests.support.randomise import randomise_batch_norm


def conv_and_norm(**options: Any) -> nn.Module:
    return ready(nn.Sequential(nn.Conv2d(4, 4, 3, **options), nn.BatchNorm2d(4)))


def test_a_factor_of_another_dtype() -> None:
    """It decides the dtype of the result, which a convolution in float32 would not give."""
    model = ready(
        Network(
            lambda self, x: self.conv(x) * self.gamma,
            conv=nn.Conv2d(4, 4, 1),
            gamma=torch.randn(4, 1, 1),
        )
    )
    model.conv.float()
    x = images().float()
    fused = reparam.fuse(model)
    assert run(fused, (x,)).dtype == torch.float64
    assert torch.equal(run(fused, (x,)), run(model, (x,)))
    assert_reported(fused.reparam_report, "mul", "parameters of different dtypes")


def test_layers_of_different_dtypes() -> None:
    model = nn.Sequential(nn.Linear(4, 4).double(), nn.Linear(4, 4).half()).eval()
    refused = reparam.plan(model).refused
    assert [row.reason for row in refused] == [
        "parameters of different dtypes (torch.float64 and torch.float16)"
    ]


def test_statistics_of_another_dtype_are_welcome() -> None:
    """Batch norms of half-precision networks keep float32 statistics."""
    model = conv_and_norm().bfloat16()
    model[1].float()
    fused = reparam.fuse(model)
    assert {p.dtype for p in fused.parameters()} == {torch.bfloat16}
    assert len(fused.reparam_report.fused) == 1


def test_what_may_be_integers_is_said() -> None:
    """A convolution refuses them: what makes them floats would take the place of the division."""
    model = ready(Network(lambda self, x: self.conv(x / 2), conv=nn.Conv2d(4, 4, 1)))
    model.float()
    integers = torch.ones(2, 4, 5, 5, dtype=torch.int32)
    for inputs, reason in (
        ((), "x may hold integers, which would have to become floats first; pass example_inputs"),
        ((integers,), "x holds integers, which would have to become floats first"),
    ):
        fused = reparam.fuse(model, inputs or None)
        assert_reported(fused.reparam_report, "conv", reason)
    assert len(reparam.fuse(model, (images().float(),)).reparam_report.fused) == 1


def test_a_cast_between_two_layers_stays() -> None:
    """Rounding to bfloat16 is not affine."""
    model = ready(
        Network(
            lambda self, x: self.b(self.a(x).bfloat16().double()),
            a=nn.Conv2d(4, 4, 1),
            b=nn.Conv2d(4, 4, 1),
        )
    )
    x = images()
    fused = reparam.fuse(model)
    assert torch.equal(run(fused, (x,)), run(model, (x,)))
    assert relative_error(run(nn.Sequential(model.a, model.b), (x,)), run(model, (x,))) > 1e-4


@pytest.mark.parametrize(
    "convert",
    [
        lambda v, x: v.double(),
        lambda v, x: v.to(torch.float64),
        lambda v, x: v.to(dtype=torch.float64, copy=True),
        lambda v, x: v.to(x.dtype),
        lambda v, x: v.type_as(x),
        lambda v, x: v.to(x),
    ],
)
def test_a_cast_to_the_type_at_hand_is_crossed(convert: Callable[..., Tensor]) -> None:
    """It stays where it is, since the model may be converted later."""
    model = ready(
        Network(
            lambda self, x: self.norm(convert(self.conv(x), x)),
            conv=nn.Conv2d(4, 4, 3),
            norm=nn.BatchNorm2d(4),
        )
    )
    x = images()
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).batch_norms == 0


@pytest.mark.parametrize(
    "convert", [lambda v: v.float().double(), lambda v: v.long().double(), lambda v: v.to("cpu")]
)
def test_a_cast_to_another_type_or_device_is_not(convert: Callable[..., Tensor]) -> None:
    model = ready(
        Network(
            lambda self, x: self.norm(convert(self.conv(x))),
            conv=nn.Conv2d(4, 4, 3),
            norm=nn.BatchNorm2d(4),
        )
    )
    x = images()
    fused = reparam.fuse(model)
    assert torch.equal(run(fused, (x,)), run(model, (x,)))
    assert any("a conversion to another type" in row.reason for row in fused.reparam_report.refused)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", ["0.weight", "1.running_mean", "1.bias"])
def test_weights_that_are_no_numbers(place: str, value: float) -> None:
    model = conv_and_norm()
    model.state_dict()[place].view(-1)[0] = value
    fused, x = reparam.fuse(model), images()
    assert torch.equal(run(fused, (x,)).isfinite(), run(model, (x,)).isfinite())
    assert_reported(fused.reparam_report, "1", "a weight is NaN or infinite")


@pytest.mark.parametrize("variance", [0.0, 5e-324, 1e-45, 1e30])
@pytest.mark.parametrize("gamma", [0.0, -2.0, 1e-30])
def test_statistics_at_the_edge_are_folded(variance: float, gamma: float) -> None:
    model, x = conv_and_norm(), images()
    with torch.no_grad():
        model[1].running_var[0] = variance
        model[1].weight[1] = gamma
    fused = reparam.fuse(model)
    assert count_operators(fused, (x,)).total == 1
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT


def test_an_overflow_in_half_precision_names_the_layer() -> None:
    model = conv_and_norm()
    with torch.no_grad():
        model[0].weight.fill_(1000.0)
        model[1].weight.fill_(1000.0)
    model.half()
    x = 1e-3 * images().half()
    assert run(model, (x,)).isfinite().all()
    with pytest.warns(UserWarning, match=r"^1: .*overflow torch\.float16"):
        fused = reparam.fuse(model)
    assert torch.equal(run(fused, (x,)), run(model, (x,)))
    assert_reported(fused.reparam_report, "1", "overflow torch.float16")


def test_structure_without_weights_is_planned() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)).eval()
    fused = reparam.fuse(model)
    assert fused[0].weight.is_meta
    assert fused[0].bias.shape == (8,)
    assert isinstance(fused[1], nn.Identity)
    assert "nothing verified" in str(fused.reparam_report)


def test_a_product_of_integers_is_no_scale() -> None:
    """Doubling 200 in uint8 gives 144."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.conv((x * 2).double())

    model = ready(Network(forward, conv=nn.Conv2d(4, 4, 1)))
    x = torch.full((1, 4, 3, 3), 200, dtype=torch.uint8)
    fused = reparam.fuse(model)
    assert torch.equal(run(fused, (x,)), run(model, (x,)))
    assert relative_error(run(model.conv, (x.double() * 2,)), run(model, (x,))) > 1e-2


def test_pixels_are_normalised_before_a_convolution() -> None:
    """The division turns bytes into floats, which the convolution alone would not take."""
    model = ready(Network(lambda self, x: self.conv(x / 255), conv=nn.Conv2d(4, 4, 3))).float()
    x = (images() * 50 + 128).to(torch.uint8)
    for fused in (reparam.fuse(model), reparam.fuse(model, x)):
        assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-6


def test_integer_indices_scaled_by_a_number() -> None:
    def forward(self: Any, index: Tensor) -> Tensor:
        return self.linear(self.table(index * 2 + 1))

    model = ready(Network(forward, table=nn.Embedding(9, 4), linear=nn.Linear(4, 4)))
    index = torch.tensor([[0, 1, 2, 3]])
    fused = reparam.fuse(model)
    assert torch.equal(run(fused, (index,)), run(model, (index,)))
    assert fused.reparam_report.fused == []


def test_a_norm_and_a_constant_of_another_dtype() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(4)
            self.shift = torch.randn(4, 1, 1)  # a plain attribute, which .double() leaves alone

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) + self.shift

    model = randomise_batch_norm(Shifted().double().eval(), 0)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    fused = reparam.fuse(model)
    assert_reported(fused.reparam_report, "add", "parameters of different dtypes")
    assert fused(x).dtype == torch.float64
    assert relative_error(run(fused, (x,)), run(model, (x,))) < 1e-12
