"""Measures the latency of two forms of one network, side by side in one process."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_WARM_UP = 10


@dataclass(frozen=True)
class Latency:
    """Seconds for one forward: the median, and the quartiles as its spread."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median * 1e3:.3f} ms ({self.low * 1e3:.3f} to {self.high * 1e3:.3f})"


@dataclass(frozen=True)
class Comparison:
    """The latencies of the two forms for batches of one size."""

    batch: int
    rounds: int
    original: Latency
    fused: Latency

    @property
    def speedup(self) -> float:
        """How many times faster the fused form is, by the medians."""
        return self.original.median / self.fused.median


def compare(
    original: Callable[..., Any],
    fused: Callable[..., Any],
    *inputs: Tensor,
    rounds: int,
    progress: Callable[[int], object] | None = None,
) -> Comparison:
    """Times both forms on the same inputs, taking turns.

    Whatever slows the machine down for a while then slows down both.

    Args:
        original: The network as it is.
        fused: The same network, fused.
        *inputs: What both are called with; the first axis is the batch.
        rounds: How often each form is timed.
        progress: Called between rounds with the number of those that are done.

    Returns:
        The latencies of both.
    """
    forms = (original, fused)
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for turn in range(-_WARM_UP, rounds):
            # Each form goes first every other time: the second finds warmer caches.
            for form in (0, 1) if turn % 2 else (1, 0):
                start = time.perf_counter()
                forms[form](*inputs)
                elapsed = time.perf_counter() - start
                if turn >= 0:
                    seconds[form].append(elapsed)
            if progress is not None:
                progress(max(turn + 1, 0))
    batch = len(inputs[0]) if inputs and inputs[0].dim() else 1
    return Comparison(batch, rounds, _summarise(seconds[0]), _summarise(seconds[1]))


@contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Lets PyTorch use some number of CPU threads meanwhile; `None` leaves it as it is."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe_machine() -> str:
    """Names what a measurement depends on: processor, threads and the version of PyTorch."""
    threads = torch.get_num_threads()
    plural = "" if threads == 1 else "s"
    return (
        f"{processor()} ({os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}), "
        f"{threads} thread{plural}, PyTorch {torch.__version__}"
    )


def processor() -> str:
    """The name of the processor."""
    details = Path("/proc/cpuinfo")
    if details.exists():
        for line in details.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _summarise(seconds: list[float]) -> Latency:
    low, median, high = statistics.quantiles(seconds, n=4)
    return Latency(median, low, high)
