"""Times on a noisy machine: what is told of them, and what `cost="latency"` makes of that."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn

import reparam
from reparam.planning.cost_functions import Operator
from reparam.planning.stopwatch import Stopwatch


class Machine:
    """Things that take so long, but for the noise of a machine whose clock is not real."""

    def __init__(self, noise: float, seed: int = 0) -> None:
        self.noise, self.random = noise, random.Random(seed)
        self.times: Counter[str] = Counter()

    def time(self, thing: str) -> float:
        self.times[thing] += 1
        true = float(thing.strip("abc"))
        return true * (1 + self.noise * self.random.random())

    def watch(self, *things: str) -> Stopwatch[str]:
        watch = Stopwatch(self.time, str)
        for thing in things:
            watch(thing)
        return watch


def test_without_noise_five_times_are_enough() -> None:
    machine = Machine(0)
    watch = machine.watch("10a", "11b")
    assert watch.longer(Counter(["11b"]), Counter(["10a"])) == 1
    assert machine.times == {"10a": 5, "11b": 5}


def test_it_times_until_the_difference_exceeds_the_noise() -> None:
    machine = Machine(0.3)
    watch = machine.watch("10a", "11b")
    difference = watch.longer(Counter(["11b"]), Counter(["10a"]))
    assert difference is not None
    assert difference > 0
    assert machine.times["10a"] == machine.times["11b"] > 5


def test_what_nobody_can_tell_ends() -> None:
    machine = Machine(5)
    watch = machine.watch("10a", "10b")
    assert watch.longer(Counter(["10a"]), Counter(["10b"])) is None
    assert machine.times == {"10a": 20, "10b": 20}
    assert watch.longer(Counter(["10b"]), Counter(["10a"])) is None
    assert machine.times == {"10a": 20, "10b": 20}  # remembered


def test_what_is_on_both_sides_counts_for_nothing() -> None:
    machine = Machine(0.9)
    watch = machine.watch("1000c", "2a", "1b")
    assert watch.longer(Counter(["1000c", "2a", "2a"]), Counter(["1000c", "1b"])) is not None
    assert machine.times["1000c"] == 5


def test_what_does_not_run_takes_for_ever() -> None:
    watch: Stopwatch[str] = Stopwatch(float, str)
    assert (watch("inf"), watch("1")) == (float("inf"), 1)
    assert watch.longer(Counter(["1"]), Counter(["inf"])) == -float("inf")


# -- In plans --------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Operator]]:
    """Sets how long operators take on a machine of some noise; gives what was timed."""

    def pretend(takes: Callable[[Operator], float], noise: float) -> list[Operator]:
        timed: list[Operator] = []
        generator = random.Random(0)

        def time(operator: Operator) -> float:
            timed.append(operator)
            return takes(operator) * (1 + noise * generator.random())

        monkeypatch.setattr("reparam.planning.cost_functions._time", time)
        return timed

    return pretend


def pair() -> nn.Module:
    layers = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
    return nn.Sequential(*layers).eval()


def pooled() -> nn.Module:
    """A pool and a convolution, which become one of other geometry and more multiply-adds."""
    return nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(4, 8, 1), nn.ReLU()).eval()


def test_a_convolution_with_other_numbers_is_not_timed_against_itself(
    machine: Callable[..., list[Operator]],
) -> None:
    timed = machine(lambda operator: 10.0, 100.0)
    plan = reparam.plan(pair(), torch.zeros(1, 3, 6, 6), cost="latency")
    assert [row.operators for row in plan.fused] == ["Conv2d + BatchNorm2d"]
    assert plan.fused[0].basis.startswith("the same operator with other numbers")
    assert sum(operator.kind == "conv" for operator in timed) == 5  # the one there, not both
    assert "fewer of them (1)" in " ".join(str(plan).split())


def test_a_measured_gain_is_taken_on_a_noisy_machine(
    machine: Callable[..., list[Operator]],
) -> None:
    timed = machine(lambda operator: 12.0 if operator.planned else 10.0, 0.4)
    plan = reparam.plan(pooled(), torch.zeros(1, 4, 8, 8), cost="latency")
    assert [row.basis for row in plan.fused] == ["measured"]
    assert len(timed) >= 15


def test_within_the_noise_multiply_adds_decide(machine: Callable[..., list[Operator]]) -> None:
    machine(lambda operator: 19.0 if operator.planned else 10.0, 20.0)
    plan = reparam.plan(pooled(), torch.zeros(1, 4, 8, 8), cost="latency")
    assert not plan.fused
    assert any("within the noise of this machine" in row.reason for row in plan.refused), plan


def test_fewer_multiply_adds_decide_within_the_noise(
    machine: Callable[..., list[Operator]],
) -> None:
    machine(lambda operator: 19.0 if operator.planned else 10.0, 20.0)
    narrow = nn.Sequential(nn.Conv2d(2, 16, 1, bias=False), nn.Conv2d(16, 2, 3), nn.ReLU()).eval()
    x = torch.zeros(1, 2, 8, 8)
    plan = reparam.plan(narrow, x, cost="latency")
    assert [row.basis for row in plan.fused] == [
        "within the noise of this machine: multiply-adds decide"
    ]
    assert len(reparam.plan(narrow, x).fused) == 1


def test_at_fixed_sizes_multiply_adds_decide_there(machine: Callable[..., list[Operator]]) -> None:
    machine(lambda operator: 19.0 if operator.planned else 10.0, 20.0)
    program = torch.export.export(pooled(), (torch.zeros(1, 4, 8, 8),))
    plan = reparam.plan(program, cost="latency")
    assert not plan.fused
    assert any("within the noise of this machine" in row.reason for row in plan.refused)
