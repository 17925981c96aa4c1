"""Other types, layouts and devices, before and after fusing."""

import pytest
import torch
from torch import nn

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
