"""Equalises random networks, as they are and fused: nothing may become wrong or change."""

import warnings
from contextlib import ExitStack

import pytest
import torch

import reparam
from tests.random_networks.calls import Call
from tests.random_networks.checking import observe, untouched
from tests.random_networks.growing import random_program
from tests.support.errors import FLOAT64_BOUND, relative_error

SEEDS = range(1000, 1060)
MORE_SEEDS = range(1060, 1080)


def check(seed: int) -> int:
    """Asserts that equalising changes no output and no model; how many channels it scaled."""
    program = random_program(seed)
    scaled = 0
    with warnings.catch_warnings(), ExitStack() as stack:
        stack.callback(program.forget)
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")
        model = program.build().double()
        for start in (model, reparam.fuse(model)):
            with untouched(start):
                equal = reparam.equalize(start, powers_of_two=seed % 2 == 0)
            assert type(equal) is type(start)
            scaled += sum(row.channels[0] for row in equal.reparam_report.equalized)
            for call in program.calls(torch.float64):
                exact, result = (observe(m, Call(call), seed) for m in (model, equal))
                assert relative_error(result, exact) <= FLOAT64_BOUND
    return scaled


@pytest.mark.parametrize("seed", MORE_SEEDS)
def test_random_network(seed: int) -> None:
    check(seed)


def test_some_channels_are_scaled() -> None:
    assert sum(map(check, SEEDS)) > 60
