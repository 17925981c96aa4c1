"""Fuses random networks: nothing may become wrong, dearer or different to use.

`REPARAM_RANDOM_NETWORKS=5000 pytest tests/test_random_networks.py` tries as many. A failing network
is shown as source; `smallest_failing(seed)` makes it smaller.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import reparam
from tests.support.counting import OperatorCounts, count_operators
from tests.support.errors import FLOAT64_BOUND, relative_error
from tests.support.programs import Program, shrink
from tests.support.random_networks import random_program
from tests.support.snapshots import difference, snapshot

SEEDS = range(int(os.environ.get("REPARAM_RANDOM_NETWORKS", "150")))

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def in_float64(program: Program) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return program.build().double(), tuple(x.double() for x in program.inputs())


def output_and_inputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """The output, and the inputs as the call leaves them: it may write into them."""
    inputs = tuple(x.clone() for x in inputs)
    with torch.no_grad():
        return model(*inputs), inputs


def check(program: Program) -> tuple[OperatorCounts, OperatorCounts]:
    """Asserts all that a fused network promises, and counts operators before and after."""
    model, inputs = in_float64(program)
    before = snapshot(model)
    fused = reparam.fuse(model)
    changed = difference(before, snapshot(model))
    assert not changed, f"the user's model changed: {changed}"
    assert isinstance(fused, type(model))
    assert not fused.training
    exact, result = output_and_inputs(model, inputs), output_and_inputs(fused, inputs)
    for leaf, leaf64 in zip(tree_leaves(result), tree_leaves(exact), strict=True):
        assert getattr(leaf, "dtype", None) == getattr(leaf64, "dtype", None)
    error = relative_error(result, exact)
    assert error <= FLOAT64_BOUND, f"relative error {error:.1e}"
    original, counts = count_operators(model, inputs), count_operators(fused, inputs)
    assert counts.macs <= original.macs, f"dearer: {counts}\noriginal: {original}"
    assert counts.total <= original.total, f"more operators: {counts}\noriginal: {original}"
    return original, counts


def failure(program: Program) -> str:
    """What `check` says, in three words; empty where it passes."""
    try:
        check(program)
    except Exception as error:
        return " ".join([type(error).__name__, *str(error).split()[:2]])
    return ""


def smallest_failing(seed: int) -> Program:
    """The network of a failing seed, shrunk while it fails in the same way; for the debugger."""
    program = random_program(seed)
    reason = failure(program)
    return shrink(program, lambda shorter: failure(shorter) == reason)


@pytest.fixture(scope="module")
def totals() -> Iterator[list[tuple[OperatorCounts, OperatorCounts]]]:
    """Collects the counts of all networks; prints the sums at the end (`pytest -s`)."""
    counts: list[tuple[OperatorCounts, OperatorCounts]] = []
    yield counts
    original, fused = (sum(column, OperatorCounts()) for column in zip(*counts, strict=True))
    print(f"\n{len(counts)} random networks\n  original: {original}\n  fused:    {fused}")
    print(
        f"  {fused.affine / original.affine:.0%} of convolutions, linears, BN, adds and muls remain"
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_fused_random_network(
    seed: int, totals: list[tuple[OperatorCounts, OperatorCounts]]
) -> None:
    program = random_program(seed)
    try:
        totals.append(check(program))
    except Exception as error:
        error.add_note(f"\n{program}")
        raise


def test_a_seed_gives_one_network() -> None:
    first, second = random_program(7), random_program(7)
    assert first == second
    for a, b in zip(first.build().parameters(), second.build().parameters(), strict=True):
        assert torch.equal(a, b)


def test_shrinking_keeps_what_fails() -> None:
    program = next(p for p in map(random_program, range(100)) if "BatchNorm2d" in str(p))
    smallest = shrink(program, lambda p: "BatchNorm2d" in str(p))
    assert sum(len(module.steps) for module in smallest.modules) <= 2
    assert "BatchNorm2d" in str(smallest)
