"""Networks by name, with weights that follow the seed."""

from __future__ import annotations

import pytest
import torch

from reparam import ReparamError
from repvgg.training.networks import build_network, small_repvgg


def test_a_network_depends_on_its_name_and_seed_alone() -> None:
    first, second = (build_network("small", num_classes=2, in_chans=1, seed=4) for _ in range(2))
    assert torch.equal(first.linear.weight, second.linear.weight)
    with pytest.raises(ReparamError, match="did you mean"):
        build_network("repvgg_a9", num_classes=2, in_chans=1)


def test_a_model_follows_the_seed_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second, other = (small_repvgg(seed).linear.weight for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
