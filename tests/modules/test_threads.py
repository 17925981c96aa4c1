"""The library's own work runs on one thread, and leaves the number of threads as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from threading import Barrier, Event, Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.modules import AtWork, threads_for, users_threads
from reparam.modules.threads import LARGE
from tests.support.randomise import randomise_batch_norm

SIX, FOUR = 6, 4

pytestmark = pytest.mark.skipif(
    "parallel backend: OpenMP" not in torch.__config__.parallel_info(), reason="no OpenMP"
)


def in_a_thread(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns, or raises, in a thread that starts for it."""
    results: list[Any] = []
    thread = Thread(target=lambda: results.append(function(*args)))
    thread.start()
    thread.join()
    return results[0]


def setting() -> tuple[int, int]:
    """The number of threads here, and in a thread that starts now."""
    return torch.get_num_threads(), in_a_thread(torch.get_num_threads)


@pytest.fixture(autouse=True)
def _six_threads_here_and_four_later() -> Iterator[None]:
    before = setting()
    torch.set_num_threads(SIX)
    in_a_thread(torch.set_num_threads, FOUR)
    yield
    torch.set_num_threads(before[0])
    in_a_thread(torch.set_num_threads, before[1])


class Asking(nn.Module):
    """Tells how many threads it runs on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        ASKED.add(torch.get_num_threads())
        result: Tensor = self.norm(self.conv(x))
        return result


ASKED: set[int] = set()
"""What `Asking` tells: what a model notes in itself is put back."""


class Scale(nn.Module):
    """One number per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma[:, None, None]


def pair() -> nn.Module:
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Scale()
    return randomise_batch_norm(nn.Sequential(*layers).eval(), 0)


X = torch.rand(1, 3, 8, 8)


def rule_of(function: Callable[[], Any]) -> dict[Any, Any]:
    """Rules for a call by which a function is called while it works."""

    def scaled(module: Any, x: Any) -> Any:
        function()
        return x.scale(module.gamma)

    return {Scale: scaled}


CALLS: dict[str, Callable[[dict[Any, Any] | None], Any]] = {
    "plan": lambda rules: reparam.plan(pair(), rules=rules),
    "fuse": lambda rules: reparam.fuse(pair(), X, rules=rules),
    "apply": lambda rules: reparam.plan(pair(), rules=rules).apply(),
}


@pytest.mark.parametrize("call", CALLS)
def test_work_is_done_on_one_thread(call: str) -> None:
    asked: list[tuple[int, int]] = []
    CALLS[call](rule_of(lambda: asked.append(setting())))
    assert set(asked) == {(1, FOUR)}
    assert setting() == (SIX, FOUR)


@pytest.mark.parametrize("problem", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("call", CALLS)
def test_put_back_after_an_interruption(call: str, problem: type[BaseException]) -> None:
    def fail() -> None:
        raise problem("half-way")

    with pytest.raises(problem):
        CALLS[call](rule_of(fail))
    assert setting() == (SIX, FOUR)


def test_put_back_after_an_error() -> None:
    def cost(operator: reparam.Operator) -> float:
        raise ValueError("half-way")

    with pytest.raises(reparam.ReparamError, match="half-way"):
        reparam.fuse(pair(), X, cost=cost)
    assert setting() == (SIX, FOUR)


def test_other_calls_put_it_back() -> None:
    model = pair()
    fused = reparam.fuse(model)
    for call in (
        lambda: reparam.verify(model, fused, X),
        lambda: reparam.refresh(fused, model),
        lambda: reparam.equalize(model),
        lambda: reparam.expand(model, reparam.blocks.acnet()),
        lambda: reparam.fuse(model, X, inplace=True),
    ):
        call()
        assert setting() == (SIX, FOUR)


@pytest.mark.parametrize("point", ["start", "join"])
def test_put_back_where_starting_is_interrupted(
    point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the number of threads that start later is kept."""
    original = getattr(Thread, point)

    def interrupted(self: Thread) -> None:
        original(self)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(Thread, point, interrupted)
    with pytest.raises(KeyboardInterrupt):
        reparam.plan(pair())
    assert setting() == (SIX, FOUR)
    assert torch.is_grad_enabled()


def test_work_within_work() -> None:
    with AtWork() as work, work:
        assert setting() == (1, FOUR)
        with AtWork() as inner, inner:
            assert setting() == (1, FOUR)
        assert setting() == (1, FOUR)
        with users_threads():
            assert setting() == (SIX, FOUR)
            with AtWork() as inner, inner:
                assert setting() == (1, FOUR)
                with users_threads():
                    assert setting() == (SIX, FOUR)
            assert setting() == (SIX, FOUR)
            reparam.plan(pair())
            assert setting() == (SIX, FOUR)
        assert setting() == (1, FOUR)
    assert setting() == (SIX, FOUR)
    with users_threads():  # nobody is at work
        assert setting() == (SIX, FOUR)


def test_the_users_own_model_runs_on_the_users_threads() -> None:
    model = Asking().eval()
    fused = reparam.fuse(model, X)
    ASKED.clear()
    reparam.verify(model, fused, X)
    assert {SIX} == ASKED
    asked: set[int] = set()
    reparam.plan(
        pair(), X, cost=lambda operator: (asked.add(torch.get_num_threads()), operator.weights)[1]
    )
    assert asked == {SIX}


@pytest.mark.parametrize("numbers", [LARGE - 1, LARGE])
def test_large_kernels_are_made_on_the_users_threads(numbers: int) -> None:
    def of() -> AbstractContextManager[None]:
        return threads_for(numbers)

    with AtWork() as work, work, of():
        assert setting() == (SIX if numbers == LARGE else 1, FOUR)


def test_several_threads_plan_at_once() -> None:
    """Each has its own number, which it finds again, and which no other one gets."""
    numbers = (2, 3, 1, SIX)
    barrier = Barrier(len(numbers))

    def plan(number: int) -> list[int]:
        torch.get_num_threads()  # torch forgets what is set before
        torch.set_num_threads(number)
        barrier.wait()
        found = []
        for _ in range(3):
            reparam.fuse(pair(), X)
            found.append(torch.get_num_threads())
        return found

    results: dict[int, Any] = {}
    threads = [Thread(target=lambda n=n: results.update({n: plan(n)})) for n in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: [number] * 3 for number in numbers}
    assert torch.get_num_threads() == SIX


def test_who_computes_meanwhile_is_not_disturbed() -> None:
    """A thread that runs its own model, and one that starts to, while another one fuses."""
    working, asked = Event(), Event()
    numbers: dict[str, set[int]] = {"before": set(), "started": set()}

    def run(who: str, until: Event) -> None:
        model = pair()
        while not until.is_set():
            model(X)
            numbers[who].add(torch.get_num_threads())
            working.set()

    runner = Thread(target=run, args=("before", asked))
    runner.start()
    working.wait()

    def during() -> None:
        starter = Thread(target=run, args=("started", done := Event()))
        starter.start()
        while not numbers["started"]:
            working.wait(0.01)
        done.set()
        starter.join()

    try:
        reparam.fuse(pair(), rules=rule_of(during))
    finally:
        asked.set()
        runner.join()
    assert numbers == {"before": {FOUR}, "started": {FOUR}}
    assert setting() == (SIX, FOUR)
