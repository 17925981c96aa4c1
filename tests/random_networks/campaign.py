"""Many random networks over several processes, and what came out of them as plain data."""

import multiprocessing
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch

from tests.random_networks.checking import (
    ChangedError,
    DearerError,
    UnexplainedError,
    WrongError,
    check,
)
from tests.random_networks.growing import random_program
from tests.support.correctness_page import run_versions
from tests.support.counting import OperatorCounts

KINDS = ["wrong", "raised", "dearer", "changed", "unexplained", "other"]
"""How a network fails; `other` is a promise of use, such as copies or a second fuse."""

CHUNK = 20

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Failure:
    """A network that does not keep a promise.

    Args:
        seed: Its seed.
        kind: One of `KINDS`.
        message: The first line of what was raised.
    """

    seed: int
    kind: str
    message: str


@dataclass(frozen=True)
class Result:
    """What came out of some seeds.

    Args:
        networks: How many were tried.
        original: The operators of those that passed, before fusing.
        fused: The same after fusing.
        reasons: How often what was the reason why an operator stayed.
        failures: Those that failed.
    """

    networks: int = 0
    original: OperatorCounts = OperatorCounts()  # noqa: RUF009  # immutable
    fused: OperatorCounts = OperatorCounts()  # noqa: RUF009
    reasons: Counter[str] = field(default_factory=Counter)
    failures: tuple[Failure, ...] = ()

    def __add__(self, other: "Result") -> "Result":
        return Result(
            self.networks + other.networks,
            self.original + other.original,
            self.fused + other.fused,
            self.reasons + other.reasons,
            self.failures + other.failures,
        )


def try_seeds(seeds: Sequence[int]) -> Result:
    """Makes, fuses and checks the networks of some seeds."""
    total = Result()
    for seed in seeds:
        program = random_program(seed)
        try:
            passed = check(program)
        except Exception as error:
            total += Result(1, failures=(failure_of(seed, error),))
        else:
            reasons = Counter(map(without_names, passed.reasons))
            total += Result(1, passed.original, passed.fused, reasons)
    return total


def without_names(reason: str) -> str:
    """A reason without the names and numbers of one network."""
    reason = re.split(r": | \(|; ", reason)[0]
    reason = re.sub(r"^\S+ is also read by .*", "its value is also read by others", reason)
    reason = re.sub(r"^it follows .*, which", "it follows something that", reason)
    reason = re.sub(r"^\S+ is written to", "a value is written to", reason)
    return re.sub(r"\d+", "n", reason)


def failure_of(seed: int, error: Exception) -> Failure:
    """The network of a seed, and what was raised for it."""
    line = f"{type(error).__name__}: {error}".partition("\n")[0]
    kinds = {
        WrongError: "wrong",
        DearerError: "dearer",
        ChangedError: "changed",
        UnexplainedError: "unexplained",
        AssertionError: "other",
    }
    return Failure(seed, kinds.get(type(error), "raised"), line[:200])


def failures_by_kind(failures: Sequence[Failure]) -> dict[str, int]:
    """How many networks fail in which way."""
    kinds = Counter(failure.kind for failure in failures)
    return {kind: kinds[kind] for kind in KINDS}


def try_in_processes(
    seeds: range, jobs: int, try_seeds: Callable[[Sequence[int]], ResultT]
) -> Iterator[ResultT]:
    """The results of parts of the seeds, as they come."""
    parts = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
        for done in as_completed([pool.submit(try_seeds, part) for part in parts]):
            yield done.result()


def summary(result: Result, seeds: range, seconds: float) -> dict[str, Any]:
    """The result as data for a file."""
    before, after = asdict(result.original), asdict(result.fused)
    before["affine"], after["affine"] = result.original.affine, result.fused.affine
    return {
        "networks": result.networks,
        "seeds": [seeds.start, seeds.stop - 1],
        "failed": failures_by_kind(result.failures),
        "operators": {kind: {"before": before[kind], "after": after[kind]} for kind in before},
        "reasons": dict(result.reasons.most_common(15)),
        "failures": [asdict(f) for f in sorted(result.failures, key=lambda f: f.seed)],
        **run_versions(seconds),
    }
