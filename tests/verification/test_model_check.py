"""`reparam.verify` on forwards that make tensors, take integers, or run in one type only."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reparam
from tests.support.randomise import randomise_batch_norm

C = 4


class Network(nn.Module):
    """A convolution and its norm, and what somebody makes of them."""

    def __init__(self, use: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.conv, self.norm, self.use = nn.Conv2d(3, C, 3, padding=1), nn.BatchNorm2d(C), use
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.use(self, x)

    def body(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def sequence(self, x: Tensor) -> Tensor:
        return self.body(x).flatten(2).transpose(1, 2)


def network(use: Callable[..., Any], **parts: Any) -> Any:
    torch.manual_seed(0)
    return randomise_batch_norm(Network(use, **parts), 0).eval()


def images() -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, 6, 6), dtype=torch.uint8, generator=generator)


def recurrent(m: Any, x: Tensor) -> Tensor:
    zeros = torch.zeros(1, len(x), C)
    return m.part(m.sequence(x), (zeros, zeros))[0]


def recurrent_in_float32(m: Any, x: Tensor) -> Tensor:
    y = m.sequence(x)
    return m.part(y, y.new_zeros(1, len(x), C, dtype=torch.float32))[0]


def warped(m: Any, x: Tensor) -> Tensor:
    steps = torch.eye(2, 3)[None].expand(2, 2, 3)
    grid = F.affine_grid(steps, [2, 1, 5, 5], align_corners=False)
    return F.grid_sample(m.body(x), grid, align_corners=False)


def masked(m: Any, x: Tensor) -> Tensor:
    y = m.sequence(x)
    mask = torch.full((y.shape[1], y.shape[1]), -math.inf).triu(1)
    return F.scaled_dot_product_attention(y, y, y, attn_mask=mask)


ORDINARY: dict[str, tuple[Any, Callable[[], Tensor]]] = {
    "bytes": (network(lambda m, x: m.body(x / 255)), pixels),
    "bytes as floats": (network(lambda m, x: m.body(x.float() / 255)), pixels),
    "grid": (network(lambda m, x: m.body(x + torch.linspace(0, 1, x.shape[-1]))), images),
    "positions": (network(lambda m, x: m.body(x) * torch.arange(x.shape[-1]).sqrt()), images),
    "matrix": (network(lambda m, x: m.body(x) @ torch.eye(x.shape[-1])), images),
    "kept matrix": (network(lambda m, x: m.body(x) @ m.kept, kept=torch.rand(6, 6)), images),
    "kept in a list": (
        network(lambda m, x: m.body(x) @ m.kept[0], kept=[torch.rand(6, 6)]),
        images,
    ),
    "named type": (
        network(
            lambda m, x: torch.cat([m.body(x), torch.ones(2, 1, 6, 6, dtype=torch.float32)], 1)
        ),
        images,
    ),
    "states": (network(recurrent, part=nn.LSTM(C, C, batch_first=True)), images),
    "states of a type": (
        network(recurrent_in_float32, part=nn.GRU(C, C, batch_first=True)),
        images,
    ),
    "attention": (network(masked), images),
    "warped": (network(warped), images),
    "written": (network(lambda m, x: torch.zeros(2, C, 6, 6).copy_(m.body(x)).add_(1)), images),
    "indices": (network(lambda m, x: (m.body(x), m.body(x).argmax(1), torch.arange(3))), images),
    "complex": (network(lambda m, x: torch.fft.rfft2(m.body(x))), images),
    "sparse": (network(lambda m, x: m.body(x).to_sparse()), images),
    "infinite": (network(lambda m, x: m.body(x).masked_fill(m.body(x) < 0, -math.inf)), images),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_forwards_are_compared_in_float64(name: str) -> None:
    model, make = ORDINARY[name]
    x = make()
    result = reparam.verify(model, reparam.fuse(model), x)
    assert result.notes == ()
    assert 0 < max(result.original) < 1e-5
    assert max(result.fused) < 1e-5
    # The reference is exact: the weights are all that a fused model in float64 rounds.
    assert max(result.rounding) < 1e-5


def numbers(m: Any, x: Tensor) -> Tensor:
    return x / 255 + torch.linspace(0, 1, 6) + m.kept.sin()


def test_the_reference_is_more_exact_than_the_model() -> None:
    """What code makes of numbers and of integers is computed in float64, not converted to it."""
    model = network(
        lambda m, x: x / 255 + torch.linspace(0, 1, 6) + m.kept.sin(), kept=torch.rand(6)
    )
    x = pixels()
    exact = (
        x.double() / 255 + torch.linspace(0, 1, 6, dtype=torch.float64) + model.kept.double().sin()
    )
    error = float((model(x) - exact).abs().max() / exact.abs().max())
    assert reparam.verify(model, model, x).original[0] == pytest.approx(error)


def test_an_operator_for_float32_runs_in_float32() -> None:
    def use(m: Any, x: Tensor) -> Tensor:
        zeros = torch.zeros(C, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(m.body(x), m.scale, zeros, 1, -128, 127)

    model, x = network(use, scale=torch.rand(C) * 0.1 + 0.1), images()
    result = reparam.verify(model, reparam.fuse(model), x)
    assert max(result.fused) < 0.1
    (note,) = result.notes
    assert "aten.fake_quantize_per_channel_affine_cachemask does not run in float64" in note
    assert note in str(result)


def insists(m: Any, x: Tensor) -> Tensor:
    if torch.jit.is_tracing() or x.dtype != torch.float32:
        raise TypeError("float32, please")
    return m.body(x)


def test_a_model_for_float32_is_compared_as_it_is() -> None:
    model, x = network(insists), images()
    fused = reparam.fuse(model)
    result = reparam.verify(model, fused, x)
    assert len(result.fused) == len(result.original) == len(result.rounding) == 1
    assert math.isnan(result.original[0])
    assert math.isnan(result.rounding[0])
    assert result.fused[0] < 1e-5
    assert "the original does not run in float64 (TypeError: float32, please)" in result.notes
    assert "the fused model is compared with the original as it is" in result.notes
    with torch.no_grad():
        fused.conv.weight.mul_(2)
    assert reparam.verify(model, fused, x).fused[0] > 1e-2


@dataclass
class Output:
    value: Tensor
    count: int


def test_what_was_not_compared_is_said() -> None:
    model, x = network(lambda m, x: (Output(m.body(x), 2), {"shape": object()}, None)), images()
    result = reparam.verify(model, model, x)
    assert result.fused[0] < 1e-5
    assert result.notes == (
        "an output of class int was not compared",
        "an output of class object was not compared",
    )


def test_a_model_on_the_meta_device_is_not_compared() -> None:
    model, x = network(lambda m, x: m.body(x)).to("meta"), images().to("meta")
    result = reparam.verify(model, reparam.fuse(model), x)
    assert math.isnan(result.fused[0])
    assert "output 0 was not compared" in result.notes[0]


@pytest.mark.parametrize("which", ["original", "fused model"])
def test_a_model_that_does_not_run_is_named(which: str) -> None:
    good, bad = network(lambda m, x: m.body(x)), network(lambda m, x: m.body(x[:, :2]))
    models = (bad, good) if which == "original" else (good, bad)
    with pytest.raises(reparam.ReparamError, match=f"the {which} does not run on example_inputs"):
        reparam.verify(*models, images())


def test_verify_leaves_models_and_inputs_as_they_were() -> None:
    def use(m: Any, x: Tensor) -> Tensor:
        m.calls += 1
        m.kept.add_(1)
        return m.body(x.mul_(2)) + m.kept

    model, x = network(use, calls=0, kept=torch.zeros(6)), images()
    before = x.clone()
    result = reparam.verify(model, model, x)
    assert max(result.fused) < 1e-5
    assert torch.equal(x, before)
    assert model.calls == 0
    assert torch.equal(model.kept, torch.zeros(6))
    assert model.kept.dtype == torch.float32
