"""Constants that are moved to where a value of the input is, or take on its type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.cases.checking import assert_exact
from tests.refusals.checking import Network, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run

C = 4
SINGLE = 1e-5

Forward = Callable[[Any, Tensor], Tensor]


def network(forward: Forward) -> nn.Module:
    return ready(
        Network(
            forward,
            conv=nn.Conv2d(C, C, 3, padding=1),
            other=nn.Conv2d(C, C, 3, padding=1),
            norm=nn.BatchNorm2d(C),
            gain=torch.rand(C, 1, 1) + 0.5,
        )
    )


def with_kernel(move: Callable[[Tensor, Tensor], Tensor]) -> Forward:
    def forward(m: Any, x: Tensor) -> Tensor:
        kernel = move(m.conv.weight + m.other.weight, x)
        return F.conv2d(x, kernel, move(m.conv.bias + m.other.bias, x), padding=1)

    return forward


def made_there(m: Any, x: Tensor) -> Tensor:
    eye = torch.zeros(C, C, 3, 3, device=x.device, dtype=x.dtype)
    eye[:, :, 1, 1] = torch.eye(C, device=x.device, dtype=x.dtype)
    return F.conv2d(x, m.conv.weight + eye, padding=1)


def behind_a_layer(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.conv(x)
    return y * m.gain.to(y.dtype) + m.gain.type_as(y)


MOVED: dict[str, Forward] = {
    "to a device": with_kernel(lambda w, x: w.to(x.device)),
    "to a type": with_kernel(lambda w, x: w.to(x.dtype)),
    "to both": with_kernel(lambda w, x: w.to(device=x.device, dtype=x.dtype)),
    "to a value": with_kernel(lambda w, x: w.to(x)),
    "as a value": with_kernel(lambda w, x: w.type_as(x)),
    "made there": made_there,
    "behind a layer": behind_a_layer,
}


@pytest.mark.parametrize("name", MOVED)
def test_a_constant_that_is_moved_is_a_constant(name: str) -> None:
    model = network(lambda m, x: m.norm(MOVED[name](m, x)))
    fused = assert_exact(model, images(), total=1)
    assert count_operators(fused, (images(),)).convolutions == 1


def to_less(m: Any, x: Tensor) -> Tensor:
    half = x.bfloat16()
    return F.conv2d(half, (m.conv.weight + m.other.weight).to(half.dtype)).to(x.dtype)


def to_flags(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.conv(x)
    return y * m.gain.to((x > 0).dtype)


def to_integers(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.conv(x)
    return y * (m.gain * 3).to((x * 10).int().dtype)


@pytest.mark.parametrize("forward", [to_less, to_flags, to_integers])
def test_another_type_is_another_constant(forward: Forward) -> None:
    for to in (torch.float64, torch.float32):
        model, x = network(forward).to(to), images().to(to)
        fused = reparam.fuse(model)
        assert relative_error(run(fused, (x,)), run(model, (x,))) <= SINGLE


@pytest.mark.parametrize(
    "convert", [lambda m, x: x.to(m.conv.weight.dtype), lambda m, x: x.double()]
)
def test_what_becomes_of_the_models_type_has_it(convert: Forward) -> None:
    """So bytes are scaled by the convolution, and nothing needs to be converted again."""
    model = network(lambda m, x: m.norm(m.conv(convert(m, x) / 255)))
    pixels = (images() * 50).clamp(0, 255).to(torch.uint8)
    counts = count_operators(assert_exact(model, pixels), (pixels,))
    assert (counts.total, counts.convolutions) == (1, 1)


def test_what_becomes_of_another_type_has_not() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        low: Tensor = m.conv(x).bfloat16()
        total: Tensor = m.other(low * m.gain)
        return total

    model, x = network(forward).float(), images().float()
    assert relative_error(run(reparam.fuse(model), (x,)), run(model, (x,))) <= SINGLE
