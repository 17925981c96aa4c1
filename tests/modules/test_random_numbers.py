"""Random numbers are where they were after the library has drawn some, on accelerators, too."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.modules.random_numbers import (
    random_numbers_kept,
    random_state,
    set_random_state,
    start_random_numbers,
)


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> torch.Generator:
    """The generator of an accelerator that is in use; one of the processor stands for it."""
    generator = torch.Generator().manual_seed(3)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "default_generators", (generator,))
    return generator


def _draw(generator: torch.Generator) -> list[float]:
    drawn = [torch.rand(()), torch.rand((), generator=generator)]
    return [*map(float, drawn), random.random(), float(np.random.rand())]


def test_states_go_back(accelerator: torch.Generator) -> None:
    state = random_state()
    first = _draw(accelerator)
    assert random_state() != state
    set_random_state(state)
    assert random_state() == state
    assert _draw(accelerator) == first


def test_each_of_them_is_noticed(accelerator: torch.Generator) -> None:
    for draw in (
        lambda: torch.rand(()),
        lambda: torch.rand((), generator=accelerator),
        random.random,
        np.random.rand,
    ):
        state = random_state()
        draw()
        assert random_state() != state


def test_what_starts_anew_is_the_same_and_goes_back(accelerator: torch.Generator) -> None:
    state, drawn = random_state(), []
    for seed in (1, 1, 2):
        with random_numbers_kept():
            start_random_numbers(seed)
            drawn.append(_draw(accelerator))
        assert random_state() == state
    assert drawn[0] == drawn[1]
    assert not {*drawn[0]} & {*drawn[2]}


class _Noisy(nn.Module):
    """Draws from the generator of an accelerator, as an operator there does by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * torch.rand((), generator=torch.cuda.default_generators[0])


def test_fusing_leaves_an_accelerators_random_numbers_alone(accelerator: torch.Generator) -> None:
    model = _Noisy().eval()
    state, numbers = random_state(), accelerator.get_state()
    reparam.fuse(model)
    reparam.fuse(model, example_inputs=torch.zeros(1, 3, 8, 8))
    assert random_state() == state
    assert torch.equal(accelerator.get_state(), numbers)


def test_an_accelerator_that_is_not_in_use_is_not_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", asked.append)
    reparam.fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).eval())
    start_random_numbers(0)
    assert not asked
