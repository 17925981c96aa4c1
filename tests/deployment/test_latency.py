"""Two forms are timed in turns and summarised by medians and quartiles."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from reparam.deployment.latency import Comparison, Latency, compare, describe_machine


class Clock:
    """A clock that only moves when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


class Sleeper(nn.Module):
    """Takes the given times, over and over, and notes its name when it runs."""

    def __init__(self, name: str, clock: Clock, seconds: list[float], log: list[str]) -> None:
        super().__init__()
        self.name, self.clock, self.seconds, self.log = name, clock, seconds, log
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        self.clock.now += self.seconds[self.calls % len(self.seconds)]
        self.calls += 1
        self.log.append(self.name)
        return x


def test_both_forms_take_turns_and_the_medians_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    log: list[str] = []
    trained = Sleeper("trained", clock, [4.0, 5.0, 6.0, 7.0, 1000.0], log)
    fused = Sleeper("fused", clock, [2.0], log)
    comparison = compare(trained, fused, torch.zeros(3, 1), rounds=5)

    assert (comparison.batch, comparison.rounds) == (3, 5)
    assert comparison.original.median == 6
    assert comparison.original.low == pytest.approx(4.5)
    assert comparison.fused == Latency(median=2, low=2, high=2)
    assert comparison.speedup == 3

    pairs = [tuple(log[i : i + 2]) for i in range(0, len(log), 2)]
    assert set(pairs[::2]) == {("fused", "trained")}
    assert set(pairs[1::2]) == {("trained", "fused")}
    assert len(pairs) > 5  # the first ones warm up and do not count


def test_a_latency_prints_its_spread() -> None:
    assert str(Latency(median=0.0015, low=0.00141, high=0.00162)) == "1.500 ms (1.410 to 1.620)"


def test_the_speedup_is_how_many_times_faster_the_fused_form_is() -> None:
    slow, fast = Latency(0.004, 0.004, 0.004), Latency(0.001, 0.001, 0.001)
    assert Comparison(batch=1, rounds=2, original=slow, fused=fast).speedup == 4


def test_the_machine_is_described_with_threads_and_version() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert describe_machine().endswith(f", 1 thread, PyTorch {torch.__version__}")
        torch.set_num_threads(2)
        assert ", 2 threads, " in describe_machine()
    finally:
        torch.set_num_threads(before)
