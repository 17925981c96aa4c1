"""Modules that are not what they seem: scripted, compiled, parallel, sharded, quantised."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import reparam
from tests.cases.checking import answers, assert_exact
from tests.refusals.checking import assert_reported, images, ready
from tests.support.errors import relative_error, run

C = 4


def pair(kernel: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(C, C, kernel), nn.BatchNorm2d(C))


def around(middle: nn.Module) -> nn.Module:
    """A network with something in the middle, and something to fuse on both sides."""
    model = nn.Sequential(ready(pair()), middle, ready(pair()))
    model.training = False  # an exported module has no eval()
    return model


# -- Scripted and compiled ------------------------------------------------------------------------


def scripted(module: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(module)


def traced(module: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(module, images(), check_trace=False)


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


def compiled_in_place(module: nn.Module) -> Any:
    module.compile(backend="eager")
    return module


def exported(module: nn.Module) -> Any:
    return torch.export.export(module, (images(),)).module()


MADE = [scripted, traced, compiled, compiled_in_place, exported]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
def test_a_submodule_that_is_scripted_or_compiled(make: Callable[..., Any]) -> None:
    """It stays what it is; what is around it is fused."""
    model = around(make(ready(pair())))
    x = images()
    expected = run(model, (x,))
    for example_inputs in (None, x):
        fused = reparam.fuse(model, example_inputs, inplace=make is exported)
        assert relative_error(run(fused, (x,)), expected) <= 1e-9
        assert isinstance(fused[0][1], nn.Identity)
        assert isinstance(fused[2][1], nn.Identity)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
def test_a_whole_model_that_is_scripted_or_compiled(make: Callable[..., Any]) -> None:
    """Fused exactly, left alone with a reason, or told apart as an input of another kind."""
    model, x = make(ready(nn.Sequential(pair(3), nn.ReLU(), pair()))), images()
    expected = run(model, (x,))
    if make is compiled:
        with pytest.raises(reparam.ReparamError, match=r"compiled\._orig_mod"):
            reparam.fuse(model)
        model = model._orig_mod
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), expected) <= 1e-9
    report = fused.reparam_report
    assert report.fused or report.refused


# -- Data parallel and sharded --------------------------------------------------------------------


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_data_parallel() -> None:
    """Its replicas copy what is set on an instance: left alone, and reported."""
    model = ready(nn.DataParallel(pair(3)))
    fused = assert_exact(model, images())
    assert type(fused) is nn.DataParallel
    assert fused.reparam_report.fused or fused.reparam_report.refused


@pytest.mark.filterwarnings("ignore")
def test_distributed_data_parallel(process_group: None) -> None:
    """The module in the wrapper is what is fused, and the error says so."""
    model = nn.parallel.DistributedDataParallel(ready(nn.Sequential(pair(3), nn.ReLU(), pair())))
    x = images()
    expected = run(model.eval(), (x,))
    with pytest.raises(reparam.ReparamError, match=r"wrapped\.module"):
        reparam.fuse(model, inplace=True)
    model.module = reparam.fuse(model.module, inplace=True)
    assert relative_error(run(model, (x,)), expected) <= 1e-9


@pytest.mark.parametrize("place", ["", "0", "0.0"])
def test_fully_sharded(process_group: None, place: str) -> None:
    """A sharded parameter is no plain tensor: its layers stay, and are reported."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, x = ready(nn.Sequential(pair(3), nn.ReLU(), pair())), images()
    expected = run(model, (x,))
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model.get_submodule(place), mesh=mesh)
    fused = reparam.fuse(model, inplace=True)
    assert relative_error(full(run(fused, (x,))), expected) <= 1e-9
    assert_reported(fused.reparam_report, "0.1", "")
    assert isinstance(fused[2][1], nn.BatchNorm2d if not place else nn.Identity)


def full(value: Any) -> Any:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def test_distributed_tensors(process_group: None) -> None:
    """Parameters that are DTensors, without any wrapper."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_module

    model = ready(nn.Sequential(nn.Linear(C, C, bias=False), nn.Linear(C, C)))
    x = torch.randn(3, C, dtype=torch.float64)
    expected = run(model, (x,))
    mesh = init_device_mesh("cpu", (1,))
    model = distribute_module(model, mesh)
    from torch.distributed.tensor import DTensor

    sharded = DTensor.from_local(x, mesh, [Replicate()])
    fused = reparam.fuse(model, inplace=True)
    with torch.no_grad():
        assert relative_error(full(fused(sharded)), expected) <= 1e-9
    assert fused.reparam_report.fused == []
    assert_reported(fused.reparam_report, "1", "")


# -- Quantised ------------------------------------------------------------------------------------


def test_weights_quantised_by_torchao() -> None:
    """int8 weights in a tensor subclass: the layers stay, and are reported."""
    quantization = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Linear(32, 32), nn.ReLU(),
                          nn.Linear(32, 32), nn.Linear(32, 32)).eval()  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.quantize_(
            model, quantization.Int8WeightOnlyConfig(), lambda m, name: name in ("0", "1")
        )
    x = torch.randn(3, 32)
    expected = run(model, (x,))
    for example_inputs in (None, x):
        fused = reparam.fuse(deepcopy(model), example_inputs, inplace=True)
        assert relative_error(run(fused, (x,)), expected) < 1e-5
        assert type(fused[0].weight) is type(model[0].weight)
        assert_reported(fused.reparam_report, "1", "")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_layers_quantised_dynamically() -> None:
    """`torch.ao.quantization.quantize_dynamic`: packed weights in layers of their own."""
    model = nn.Sequential(nn.Linear(C, C), nn.Linear(C, C), nn.Unflatten(1, (C, 1, 1)), pair())
    model = torch.ao.quantization.quantize_dynamic(
        ready(model).float(), {nn.Linear}, torch.qint8
    ).eval()
    x = torch.randn(3, C)
    expected = run(model, (x,))
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), expected) < 1e-5
    assert isinstance(fused[3][1], nn.Identity)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_layers_quantised_statically() -> None:
    """`torch.ao.nn.quantized.Conv2d` between a quantisation and its reverse."""
    quantized = torch.ao.nn.quantized
    conv = quantized.Conv2d(C, C, 1)
    conv.scale, conv.zero_point = 0.1, 0
    middle = nn.Sequential(quantized.Quantize(0.1, 0, torch.quint8), conv, quantized.DeQuantize())
    model = nn.Sequential(pair(), middle, pair()).eval()
    x = images().float()
    expected = run(model, (x,))
    for example_inputs in (None, x):
        fused = reparam.fuse(model, example_inputs)
        assert relative_error(run(fused, (x,)), expected) < 1e-5
        assert isinstance(fused[2][1], nn.Identity)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_layers_with_fake_quantisation() -> None:
    """A convolution prepared for quantisation-aware training rounds its weight in forward."""
    conv = torch.ao.nn.qat.Conv2d(
        C, C, 1, qconfig=torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    )
    model = ready(nn.Sequential(conv, nn.BatchNorm2d(C))).float()
    x = images().float()
    run(model, (x,))
    expected = answers(deepcopy(model), x)
    fused = reparam.fuse(model)
    assert relative_error(answers(fused, x), expected) < 1e-5
    assert isinstance(fused[1], nn.BatchNorm2d)


class Doubled(Tensor):
    """A tensor subclass that computes otherwise."""

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = super().__torch_function__(function, types, args, kwargs or {})
        if function is torch.nn.functional.conv2d:
            return result.as_subclass(Tensor) * 2
        return result


def test_a_weight_that_computes_otherwise() -> None:
    """A tensor subclass decides what a convolution does."""
    model = ready(pair())
    weight = model[0].weight.detach().as_subclass(Doubled)
    del model[0].weight
    model[0].weight = nn.Parameter(weight, requires_grad=False)
    x = images()
    expected = run(model, (x,))
    for example_inputs in (None, x):
        fused = reparam.fuse(model, example_inputs, inplace=True)
        assert relative_error(run(fused, (x,)), expected) <= 1e-9
        assert fused.reparam_report.fused == []
