"""The network that a run begins with, and what cannot be one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import repvgg
from reparam import ReparamError
from repvgg.data import split_digits, training_digits
from repvgg.training.networks import network_of, small_repvgg
from repvgg.training.starts import BLOCKS, Run, first_network, saved_layout
from tests.repvgg.training.training_runs import SHORT

TRAIN = training_digits(split_digits(seed=0), seed=0)


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "fused.safetensors"
    repvgg.save_checkpoint(small_repvgg(seed=0), path, layout="timm_fused")
    return path


def run(weights: Path | None, **values: Any) -> Run:
    return Run("small", "digits", SHORT, weights=weights, **values)


def test_the_blocks_are_those_of_the_library() -> None:
    assert {"rep_vgg", "acnet", "dbb", "mobile_one", "csla"} <= set(BLOCKS)


@pytest.mark.parametrize("block", ["rep_vgg", "dbb"])
@pytest.mark.parametrize("norms", [True, False])
def test_expanded_weights_compute_what_the_fused_ones_do(
    fused: Path, block: str, norms: bool
) -> None:
    model = first_network(run(fused, expand=block, expand_norms=norms), TRAIN)
    images = torch.rand(4, 1, 8, 8)
    expected = network_of("small", fused)(images)
    torch.testing.assert_close(model.eval()(images), expected, rtol=1e-4, atol=1e-5)
    in_training = model.train()(images)
    assert torch.allclose(in_training, expected, rtol=1e-4, atol=1e-5) is not norms


def test_equal_seeds_give_equal_branches(fused: Path) -> None:
    first, again, other = (
        first_network(run(fused, expand="rep_vgg", seed=seed), TRAIN) for seed in (0, 0, 1)
    )
    name = "stage0.fused_conv.branches.0.0.weight"
    assert torch.equal(first.get_parameter(name), again.get_parameter(name))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


def test_expanded_weights_are_saved_as_what_they_were(fused: Path) -> None:
    assert saved_layout(run(fused, expand="rep_vgg")) == "timm_fused"
    assert saved_layout(run(None)) is None


def test_what_has_its_branches_is_not_expanded(tmp_path: Path, fused: Path) -> None:
    trained = tmp_path / "trained.safetensors"
    repvgg.save_checkpoint(small_repvgg(seed=0), trained)
    with pytest.raises(ReparamError, match="has its branches still"):
        first_network(run(trained, expand="rep_vgg"), TRAIN)
    with pytest.raises(ReparamError, match="give their file by --weights"):
        first_network(run(None, expand="rep_vgg"), TRAIN)
    with pytest.raises(ReparamError, match=r"unknown block 'mine'; known: .*rep_vgg"):
        first_network(run(fused, expand="mine"), TRAIN)


def test_a_block_that_does_not_fit_is_an_error_with_the_reason(fused: Path) -> None:
    with pytest.raises(ReparamError, match=r"kernel of \(5, 5\) does not fit"):
        first_network(run(fused, expand="rep_lk", expand_norms=False), TRAIN)
