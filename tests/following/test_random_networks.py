"""Random networks follow their originals: refreshed and live, bit for bit."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import reparam
from tests.following.moving import moved
from tests.random_networks.calls import Call, observe
from tests.random_networks.checking import assert_equal, ready, untouched
from tests.random_networks.growing import random_program


def assert_same_bits(one: Any, other: Any) -> None:
    """Asserts that two observations are equal, but for NaN, which equals itself."""
    for ours, theirs in zip(tree_leaves(one), tree_leaves(other), strict=True):
        if isinstance(ours, Tensor):
            assert torch.equal(ours.isnan(), theirs.isnan())
            assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


@pytest.mark.parametrize("seed", range(100))
def test_random_networks(seed: int) -> None:
    program = random_program(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ready(program)
        call = Call(program.calls(torch.float64)[0])
        fused = reparam.fuse(model)
        with untouched(model):
            live = reparam.fuse(model, live=True)
        assert {*live.state_dict()} == {*model.state_dict()}
        assert len(live.reparam_report.fused) == len(fused.reparam_report.fused)
        assert_equal(observe(live, call, seed), observe(model, call, seed))
        fresh = reparam.fuse(moved(model))
        seen = observe(fresh, call, seed)
        assert_same_bits(observe(reparam.refresh(fused, model), call, seed), seen)
        live.load_state_dict(model.state_dict())
        assert_same_bits(observe(live, call, seed), seen)
    program.forget()
