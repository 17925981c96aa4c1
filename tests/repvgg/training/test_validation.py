"""Both forms are evaluated, and the fused one is the network as it is now."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import reparam
import repvgg.training.validation
from reparam import ReparamError
from repvgg.data import held_out_digits, split_digits, training_digits
from repvgg.training.loop import TrainingState, train_steps
from repvgg.training.networks import small_repvgg
from repvgg.training.processes import Processes
from repvgg.training.validation import Validation
from tests.repvgg.training.training_runs import SHORT

DIGITS = split_digits(seed=0)


def started(*, average_decay: float = 0.0) -> TrainingState:
    """The small network before its first step."""
    recipe = SHORT.changed(average_decay=average_decay, epochs=1)
    return TrainingState(small_repvgg(seed=0), recipe, Processes())


def validation(state: TrainingState, *, fused: bool = True) -> Validation:
    return Validation(state, held_out_digits(DIGITS), fused=fused, workers=0)


@pytest.mark.parametrize("average_decay", [0.0, 0.9])
def test_the_fused_form_is_what_fuse_would_make_of_the_network_now(average_decay: float) -> None:
    state = started(average_decay=average_decay)
    both = validation(state)
    for _ in train_steps(state, training_digits(DIGITS, seed=0), seed=0):
        pass
    branches, fused = both.evaluate()
    assert branches == fused
    assert branches.top1 > 36
    afresh = reparam.fuse(state.evaluated.eval()).state_dict()
    for name, tensor in both.fused().state_dict().items():
        assert torch.equal(tensor, afresh[name])


def test_a_network_alone_is_not_fused_until_that_is_wanted() -> None:
    alone = validation(started(), fused=False)
    assert len(alone.evaluate()) == 1
    assert "stage0.fused_conv.weight" in alone.fused().state_dict()


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_another_fused_form_is_an_error_with_the_number(
    monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    refresh = reparam.refresh

    def refreshed(fused: nn.Module, model: nn.Module) -> nn.Module:
        refresh(fused, model)
        with torch.no_grad():
            fused.get_parameter("linear.bias").add_(wrong)
        return fused

    both = validation(started())
    monkeypatch.setattr(repvgg.training.validation.reparam, "refresh", refreshed)
    with pytest.raises(
        ReparamError,
        match=r"differs from the branches in float64 by (\d\.\de-0\d|nan) of the .*"
        "rounding explains .*--no-validate-fused",
    ):
        both.evaluate()
