"""Interleaved timing, peak memory, and the name of the hardware."""

import random
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from reparam.deployment.latency import processor


def hardware() -> str:
    """The processor, the threads and the version that a number belongs to."""
    return f"{processor_and_threads()}, torch {torch.__version__}"


def processor_and_threads() -> str:
    """The processor and the number of threads."""
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' * (threads > 1)}"


def interleaved(
    contenders: Mapping[str, Callable[[], Any]],
    rounds: int = 5,
    seconds: float = float("inf"),
    finish: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """The seconds of each round after one warm-up.

    In every round all take their turn, in another order, so that a busy machine hits all.

    Args:
        contenders: What to run.
        rounds: How many rounds.
        seconds: For how long at most; three rounds are run in any case.
        finish: Waits until what was started is done.

    Returns:
        For each contender, by name, the seconds of its rounds.
    """
    order = random.Random(0)
    for function in contenders.values():
        function()
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    begin = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - begin > seconds:
            break
        for name in order.sample(list(contenders), len(contenders)):
            finish()
            start = time.perf_counter()
            contenders[name]()
            finish()
            taken[name].append(time.perf_counter() - start)
    return taken


def summary(taken: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """For each its median and its quartiles, in milliseconds."""
    return {
        name: [round(1e3 * value, 4) for value in (median(times), *quantiles(times, n=4)[::2])]
        for name, times in taken.items()
    }


def resident_bytes(field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (peak) of this process, on Linux."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s*(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def extra_peak_bytes(function: Callable[[], Any]) -> int:
    """By how much memory rises at most while the function runs; best in a process of its own."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident_bytes("VmRSS")
    function()
    return resident_bytes("VmHWM") - before
