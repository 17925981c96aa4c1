"""Random networks expanded, moved at random, and fused: every form computes the same."""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import reparam
from reparam import ReparamError, blocks
from tests.following.moving import moved
from tests.random_networks.calls import Call, observe
from tests.random_networks.campaign import Failure, failure_of, failures_by_kind
from tests.random_networks.checking import assert_equal, ready, untouched
from tests.random_networks.growing import random_program
from tests.random_networks.programs import seeded
from tests.support.correctness_page import run_versions

BLOCKS = (
    blocks.dbb(),
    blocks.rep_vgg(),
    blocks.acnet(),
    blocks.mobile_one(2),
    blocks.expand_net(2.0),
    blocks.lora(2),
    blocks.csla(),
)


def assert_same_bits(one: Any, other: Any) -> None:
    """Asserts that two observations are equal, but for NaN, which equals itself."""
    for ours, theirs in zip(tree_leaves(one), tree_leaves(other), strict=True):
        if isinstance(ours, Tensor):
            assert torch.equal(ours.isnan(), theirs.isnan()), "other numbers"
            assert torch.equal(ours.nan_to_num(), theirs.nan_to_num()), "other bits"


def check(seed: int) -> int:
    """Asserts it of one network; how many of its layers were expanded.

    The expanded network computes what the network does. After a random update of all parameters and
    statistics the fused one computes what the expanded one does then; and of what was fused before,
    the refreshed and the live form give the same bits.
    """
    program = random_program(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ready(program)
        call = Call(program.calls(torch.float64)[0])
        exact = observe(model, call, seed)
        expanded = None
        with untouched(model), seeded(seed), suppress(ReparamError):
            expanded = reparam.expand(model, BLOCKS[seed % len(BLOCKS)])
        if expanded is not None:
            assert_equal(observe(expanded, call, seed), exact)
            _check_what_follows(expanded, call, seed)
    program.forget()
    return 0 if expanded is None else len(expanded.reparam_report.expanded)


def _check_what_follows(expanded: Any, call: Call, seed: int) -> None:
    fused = reparam.fuse(expanded)
    live = reparam.fuse(expanded, live=True)
    moved(expanded)
    fresh = reparam.fuse(expanded)
    assert_equal(observe(fresh, call, seed), observe(expanded, call, seed))
    bits = observe(fresh, call, seed)
    assert_same_bits(observe(reparam.refresh(fused, expanded), call, seed), bits)
    live.load_state_dict(expanded.state_dict())
    assert_same_bits(observe(live, call, seed), bits)


@dataclass(frozen=True)
class Result:
    """What came out of some seeds.

    Args:
        networks: How many were tried.
        expanded: How many of them have layers that can be expanded.
        layers: How many layers were.
        failures: The networks that do not keep a promise.
    """

    networks: int = 0
    expanded: int = 0
    layers: int = 0
    failures: tuple[Failure, ...] = ()

    def __add__(self, other: "Result") -> "Result":
        return Result(
            self.networks + other.networks,
            self.expanded + other.expanded,
            self.layers + other.layers,
            self.failures + other.failures,
        )


def try_seeds(seeds: Sequence[int]) -> Result:
    """Expands, moves, fuses and checks the networks of some seeds."""
    total = Result()
    for seed in seeds:
        try:
            layers = check(seed)
        except Exception as error:
            total += Result(1, failures=(failure_of(seed, error),))
        else:
            total += Result(1, bool(layers), layers)
    return total


def summary(result: Result, seeds: range, seconds: float) -> dict[str, Any]:
    """The result as data for a file."""
    return {
        "networks": result.networks,
        "seeds": [seeds.start, seeds.stop - 1],
        "expanded": result.expanded,
        "layers": result.layers,
        "failed": failures_by_kind(result.failures),
        "failures": [asdict(f) for f in sorted(result.failures, key=lambda f: f.seed)],
        **run_versions(seconds),
    }
