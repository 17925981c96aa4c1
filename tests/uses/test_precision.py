"""Other types, layouts and devices, before and after fusing."""

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.support.errors import float64_twin, relative_error, run
from tests.uses.networks import SMALL, fused_network


@pytest.mark.parametrize("name", SMALL)
def test_float64(name: str) -> None:
    case = fused_network(name)
    model, x = case.model.double(), case.x.double()
    assert relative_error(run(reparam.fuse(model), (x,)), run(model, (x,))) <= 1e-9


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("order", ["fused first", "fused last"])
def test_half_precision_is_as_good_as_before(name: str, dtype: torch.dtype, order: str) -> None:
    case = fused_network(name)
    x = case.x.to(dtype)
    model = case.model.to(dtype)
    fused = case.fused.to(dtype) if order == "fused first" else reparam.fuse(model)
    assert {tensor.dtype for tensor in fused.parameters()} == {dtype}
    truth = run(float64_twin(model), (x.double(),))
    own, error = (relative_error(run(m, (x,)), truth) for m in (model, fused))
    assert run(fused, (x,)).dtype == dtype
    assert error <= 4 * (own + torch.finfo(dtype).eps)


class LayerScale(nn.Module):
    """A linear layer and a scale, as at the end of ConvNeXt's blocks."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 16)
        self.scale = nn.Parameter(torch.full((16,), scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.linear(x)


def scaled_norm(layer: nn.Module, scale: float, channels: int = 8) -> nn.Module:
    """A layer and a batch norm some of whose channels have a small scale and no constant."""
    norm = nn.BatchNorm2d(8)
    norm.running_var.uniform_(0.5, 1.5)
    nn.init.constant_(norm.weight[:channels], scale)
    return nn.Sequential(layer, norm)


LAYERS = {
    "convolution": lambda scale: scaled_norm(nn.Conv2d(8, 8, 3, bias=False), scale),
    "one channel": lambda scale: scaled_norm(nn.Conv2d(8, 8, 3, bias=False), scale, channels=1),
    "transposed": lambda scale: scaled_norm(
        nn.ConvTranspose2d(8, 8, 5, groups=2, bias=False), scale, channels=4
    ),
    "layer scale": LayerScale,
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("scale", [1e-3, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_scales_keep_their_digits(layer: str, scale: float, dtype: torch.dtype) -> None:
    with torch.no_grad():
        model = LAYERS[layer](scale).eval().to(dtype)
    x = torch.randn((5, 64) if layer == "layer scale" else (2, 8, 12, 12)).to(dtype)
    fused = reparam.fuse(model)
    truth = run(float64_twin(model), (x.double(),))
    channels = [slice(0, 1), slice(None)] if x.dim() == 4 else [slice(None)]
    for part in channels:  # a loud channel hides what a quiet one loses
        own, error = (relative_error(run(m, (x,))[:, part], truth[:, part]) for m in (model, fused))
        assert error <= 4 * own
    report = fused.reparam_report
    assert bool(report.fused) == (dtype == torch.bfloat16 or scale == 1e-3)
    if not report.fused:
        assert "so small that torch.float16 loses their digits" in report.refused[0].reason


def test_a_channel_of_nothing_but_a_constant_does_not_matter() -> None:
    """Weight decay makes some scales vanish: the value is its constant, with or without them."""
    model = scaled_norm(nn.Conv2d(8, 8, 3), 1e-8, channels=2).eval()
    nn.init.constant_(model[1].bias, 0.5)
    assert reparam.fuse(model.half()).reparam_report.fused


def test_what_loses_no_digits_is_fused_inside_what_does() -> None:
    first = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    model = nn.Sequential(first, nn.ReLU(), scaled_norm(nn.Conv2d(8, 8, 3, bias=False), 1e-6))
    assert len(reparam.fuse(model.eval().half()).reparam_report.fused) == 1


@pytest.mark.parametrize("name", SMALL)
def test_channels_last(name: str) -> None:
    case = fused_network(name)
    expected = run(case.fused, (case.x,))
    last = case.fused.to(memory_format=torch.channels_last)
    images = case.x.to(memory_format=torch.channels_last)
    assert torch.allclose(run(last, (images,)), expected, rtol=1e-3, atol=1e-4)
    fused = reparam.fuse(case.model.to(memory_format=torch.channels_last))
    kernels = [p for p in fused.parameters() if p.dim() == 4 and p.shape[1] > 1 < p.shape[2]]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.mark.parametrize("name", ["repvgg", "byobnet", "resnet"])
def test_another_device(name: str) -> None:
    case = fused_network(name)
    moved = case.fused.to("meta")
    assert all(tensor.is_meta for tensor in (*moved.parameters(), *moved.buffers()))
    assert moved(case.x.to("meta")).shape == (2, 10)


@pytest.mark.parametrize("name", SMALL)
def test_to_empty(name: str) -> None:
    case = fused_network(name)
    empty: nn.Module = case.fused.to("meta").to_empty(device="cpu")
    empty.load_state_dict(fused_network(name).fused.state_dict())
    assert torch.equal(run(empty, (case.x,)), run(fused_network(name).fused, (case.x,)))
