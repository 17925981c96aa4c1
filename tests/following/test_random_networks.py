"""Random networks follow their originals: refreshed and live, bit for bit."""

import warnings

import pytest
import torch

import reparam
from tests.following.moving import moved
from tests.random_networks.calls import Call, observe
from tests.random_networks.checking import assert_equal, ready, untouched
from tests.random_networks.expanded import assert_same_bits
from tests.random_networks.growing import random_program


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
