"""Random networks expanded, moved, and fused: what any of the forms computes is the same."""

import copy
import warnings
from contextlib import suppress

import pytest
import torch

import reparam
from reparam import ReparamError, blocks
from tests.following.moving import moved
from tests.following.test_random_networks import assert_same_bits
from tests.random_networks.calls import Call, observe
from tests.random_networks.checking import assert_equal, ready
from tests.random_networks.growing import random_program

BLOCKS = (
    blocks.dbb(),
    blocks.rep_vgg(),
    blocks.acnet(),
    blocks.mobile_one(2),
    blocks.expand_net(2.0),
    blocks.lora(2),
    blocks.csla(),
)


def check(seed: int) -> bool:
    """Asserts it of one network; whether it has a layer that can be expanded."""
    program = random_program(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ready(program)
        call = Call(program.calls(torch.float64)[0])
        exact = observe(model, call, seed)
        expanded = None
        torch.manual_seed(seed)
        before = copy.deepcopy(model.state_dict())
        with suppress(ReparamError):
            expanded = reparam.expand(model, BLOCKS[seed % len(BLOCKS)])
        assert_same_bits(model.state_dict(), before)
        if expanded is not None:
            assert_equal(observe(expanded, call, seed), exact)
            fused = reparam.fuse(expanded)
            live = reparam.fuse(expanded, live=True)
            moved(expanded)
            seen = observe(expanded, call, seed)
            fresh = reparam.fuse(expanded)
            assert_equal(observe(fresh, call, seed), seen)
            bits = observe(fresh, call, seed)
            assert_same_bits(observe(reparam.refresh(fused, expanded), call, seed), bits)
            live.load_state_dict(expanded.state_dict())
            assert_same_bits(observe(live, call, seed), bits)
    program.forget()
    return expanded is not None


@pytest.mark.parametrize("seed", range(60))
def test_random_networks(seed: int) -> None:
    check(seed)


def test_most_networks_have_layers_to_expand() -> None:
    assert sum(map(check, range(60, 72))) > 6
