"""Planning and fusing take steps in proportion to the operators, whatever the network looks like.

Steps are calls of the library's functions, which are counted and not timed: the same everywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import torch

import reparam
from tests.benchmarks.families import network
from tests.support.counting import count_operators
from tests.support.errors import relative_error

HOME = str(Path(reparam.__file__).parent)


def steps(work: Callable[[], Any]) -> int:
    """How many functions of the library are called."""
    count = 0
    ours: dict[CodeType, bool] = {}

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        if event == "call":
            code = frame.f_code
            if code not in ours:
                ours[code] = code.co_filename.startswith(HOME)
            count += ours[code]

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


LIMIT = 2.3
"""By how much the steps may grow where the operators double."""

FAMILIES = {
    "chain of conv, norm, ReLU": (30, 60, 120),
    "sum of branches": (30, 60, 120),
    "diamonds": (30, 60),
    "diamonds with a ReLU": (30, 60),
    "dense sums": (10, 14, 20),  # of 45, 91 and 190 additions
    "a, b = b, a + b": (50, 100, 200),
    "DenseNet": (30, 60),
    "in-place chain": (50, 100, 200, 400),
    "chain of scalar factors": (50, 100, 200, 400),
    "one block called many times": (20, 40, 80),
    "tree of scaled sums": (30, 60, 120),
    "tree of scaled sums of values": (30, 60, 120),
    "deep eager nesting": (10, 20, 40),
    "joined concatenations": (30, 60),
}
"""Sizes of networks of each family, whose operators double."""


@pytest.mark.parametrize("family", FAMILIES)
def test_planning_grows_with_the_operators(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REPARAM_INVARIANTS", raising=False)  # the checks are the tests' own
    reparam.plan(network(family, 2))  # caches
    counts = []
    for size in FAMILIES[family]:
        model = network(family, size)
        counts.append(steps(lambda model=model: reparam.plan(model)))  # type: ignore[misc]
    ratios = [after / before for before, after in pairwise(counts)]
    assert max(ratios) <= LIMIT, (counts, ratios)


@pytest.mark.parametrize(
    ("family", "size", "few"),
    [("dense sums", 20, 3), ("a, b = b, a + b", 50, 4), ("chain of scalar factors", 100, 2),
     ("in-place chain", 100, 2), ("sum of branches", 100, 2)],
)  # fmt: skip
def test_shared_values_are_computed_once(
    family: str, size: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is fused is right, and few operators are left; it took minutes, or for ever."""
    model = network(family, size).double()
    x = torch.rand(1, 2, 6, 6, dtype=torch.float64)
    counts = []

    def fuse() -> None:
        counts.append(reparam.fuse(model))

    taken = steps(fuse)
    fused = counts[0]
    assert taken < 4_000_000
    with torch.no_grad():
        assert relative_error(fused(x), model(x)) < 1e-9
        assert count_operators(fused, (x,)).total <= few
