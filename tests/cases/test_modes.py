"""Fusing in any mode and from several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.refusals.checking import images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run
from tests.support.snapshot import Snapshot

C = 4


class Block(nn.Module):
    """Branches, a counter and a part that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C))
        self.b = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C))
        self.register_buffer("steps", torch.zeros(()))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.steps += 1
        if x.dim() != 4:
            raise ValueError("no images")
        return (self.a(x) + self.b(x)).relu()


def network() -> nn.Module:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C))
    return ready(nn.Sequential(Block(), nn.ReLU(), head, nn.ReLU(), Block()))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES: dict[str, Callable[[], Any]] = {
    "no mode": nullcontext,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default dtype": lambda: default_dtype(torch.float64),
    "half as default": lambda: default_dtype(torch.float16),
    "device": lambda: torch.device("cpu"),
    "meta device": lambda: torch.device("meta"),
    "deterministic": deterministic,
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "saved tensors": torch.autograd.graph.save_on_cpu,
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("example_inputs", [False, True])
def test_fusing_in_any_mode(mode: str, example_inputs: bool) -> None:
    """The result is the same as without, and the mode is as it was."""
    model, x = network(), images()
    expected, plain = run(model, (x,)), reparam.fuse(model, x if example_inputs else None)
    inputs = x.clone() if example_inputs else None
    with MODES[mode]():
        before = Snapshot(model)
        fused = reparam.fuse(model, inputs)
        before.assert_unchanged()
    assert list(fused.state_dict()) == list(plain.state_dict())
    for name, tensor in plain.state_dict().items():
        assert torch.equal(fused.state_dict()[name], tensor)
    assert relative_error(run(fused, (x,)), expected) <= 1e-9
    fused(x).sum().backward()
    assert all(parameter.grad is not None for parameter in fused.parameters())


def test_a_model_that_was_made_in_inference_mode() -> None:
    """Its parameters are inference tensors."""
    with torch.inference_mode():
        model, x = network(), images()
        expected = model(x)
        assert relative_error(reparam.fuse(model)(x), expected) <= 1e-9
    for example_inputs in (None, x):
        fused = reparam.fuse(model, example_inputs)
        with torch.inference_mode():
            assert relative_error(fused(x), expected) <= 1e-9
    with torch.inference_mode():
        assert relative_error(reparam.fuse(model, inplace=True)(x), expected) <= 1e-9


def in_threads(functions: list[Callable[[], Any]]) -> list[Any]:
    barrier = threading.Barrier(len(functions))

    def started(function: Callable[[], Any]) -> Any:
        barrier.wait()
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result() for future in [pool.submit(started, f) for f in functions]]


def test_fusing_different_models_from_several_threads() -> None:
    """torch.fx patches torch for all threads while it traces."""
    models, x = [network() for _ in range(4)], images()
    plain = reparam.fuse(models[0])
    fused = in_threads([lambda model=model: reparam.fuse(model) for model in models])
    for result in fused:
        assert relative_error(run(result, (x,)), run(plain, (x,))) <= 1e-12
        assert str(result.reparam_report) == str(plain.reparam_report)


def test_fusing_one_model_from_several_threads() -> None:
    """Every thread gets a result of its own, and the model is as it was."""
    model, x = network(), images()
    expected, before = run(deepcopy(model), (x,)), Snapshot(model)
    fused = in_threads([lambda: reparam.fuse(model)] * 4)
    before.assert_unchanged()
    for result in fused:
        assert relative_error(run(result, (x,)), expected) <= 1e-9
        assert result[0].calls == 1
        assert count_operators(result, (x,)).batch_norms == 0


def test_running_other_models_while_one_is_fused() -> None:
    """Models that run in other threads meanwhile give right answers, with their own modes."""
    model, x = network(), images()
    others = [network() for _ in range(3)]
    expected = run(deepcopy(others[0]), (x,))
    done = threading.Event()

    def fuse() -> None:
        for _ in range(5):
            reparam.fuse(model)
        done.set()

    def answer(other: nn.Module) -> int:
        count = 0
        while not done.is_set() or count < 3:
            assert torch.is_grad_enabled()
            y = other(x)
            assert y.requires_grad
            assert relative_error(y.detach(), expected) == 0
            count += 1
        return count

    counts = in_threads([fuse, *(lambda other=other: answer(other) for other in others)])[1:]
    assert [other[0].calls for other in others] == counts
