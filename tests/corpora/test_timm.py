"""Fuses one network of each of timm's families with batch norm.

The default run takes some small ones. `pytest -m "" tests/corpora` takes them all, and
`pytest -m corpus` those that the default run left out.
"""

from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

import pytest
import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn

import reparam
from tests.corpora.timm_models import TIMM_MODELS, TimmModel
from tests.support.counting import OperatorCounts, count_operators
from tests.support.errors import (
    FLOAT64_BOUND,
    float64_inputs,
    float64_twin,
    median_error,
    relative_error,
    relative_errors,
    run,
)
from tests.support.images import random_images
from tests.support.leftovers import leftover_batch_norms


@dataclass
class Fusion:
    """A network before and after, and what it computes in float64."""

    source: TimmModel
    seed: int = 0
    count: int = 2
    """Of images."""

    @cached_property
    def images(self) -> tuple[Tensor]:
        return (random_images(self.count, self.source.size, self.seed + 1),)

    @cached_property
    def model(self) -> nn.Module:
        return self.source.build(self.seed)

    @cached_property
    def exact(self) -> Tensor:
        return run(float64_twin(self.model), float64_inputs(self.images))

    @cached_property
    def fused(self) -> nn.Module:
        return reparam.fuse(self.model)

    @cached_property
    def hand(self) -> nn.Module:
        return reparameterize_model(self.model)

    @cached_property
    def counts(self) -> OperatorCounts:
        return count_operators(self.model, self.images)

    @cached_property
    def fused_counts(self) -> OperatorCounts:
        return count_operators(self.fused, self.images)

    def float32_error(self, model: nn.Module) -> float:
        return relative_error(run(model, self.images), self.exact)


def each_model(*, hand: bool = False, quick: set[str] | None = None) -> list[Any]:
    """The networks as test parameters, marked `corpus` where the default run leaves them out."""
    models = [m for m in TIMM_MODELS if m.hand or not hand]
    return [
        pytest.param(
            m,
            id=m.name,
            marks=() if (m.quick if quick is None else m.name in quick) else pytest.mark.corpus,
        )
        for m in models
    ]


@pytest.fixture(scope="module", params=each_model())
def fusion(request: pytest.FixtureRequest) -> Fusion:
    return Fusion(request.param)


def test_fused_network_is_equal_in_float64(fusion: Fusion) -> None:
    fused = reparam.fuse(float64_twin(fusion.model))
    errors = relative_errors(run(fused, float64_inputs(fusion.images)), fusion.exact)
    assert max(errors) <= FLOAT64_BOUND


def test_float32_error_stays_near_the_networks_own(fusion: Fusion) -> None:
    own = fusion.float32_error(fusion.model)
    assert fusion.float32_error(fusion.fused) <= 4 * (own + 1.2e-7)


def test_fused_network_is_never_dearer(fusion: Fusion) -> None:
    assert fusion.fused_counts.macs <= fusion.counts.macs
    assert fusion.fused_counts.total <= fusion.counts.total


def test_fused_network_has_no_more_operators_than_the_hand_written_form(fusion: Fusion) -> None:
    if not fusion.source.hand:
        pytest.skip("timm has no hand-written form")
    if not fusion.source.traced:
        pytest.skip("symbolic tracing does not enter the whole network")
    ours, hand = fusion.fused_counts, count_operators(fusion.hand, fusion.images)
    assert ours.convolutions <= hand.convolutions, f"{ours}\nby hand {hand}"
    assert ours.linears <= hand.linears, f"{ours}\nby hand {hand}"
    assert ours.batch_norms <= hand.batch_norms, f"{ours}\nby hand {hand}"
    assert ours.additions <= hand.additions, f"{ours}\nby hand {hand}"


def test_no_batch_norm_is_left_that_a_neighbour_could_absorb(fusion: Fusion) -> None:
    if not fusion.source.traced:
        pytest.skip("symbolic tracing does not enter the whole network")
    left = leftover_batch_norms(fusion.fused, fusion.images)
    assert not left, "\n".join(map(str, left))


def test_the_class_and_its_methods_stay(fusion: Fusion) -> None:
    assert isinstance(fusion.fused, type(fusion.model))
    model = float64_twin(fusion.model)
    with torch.no_grad():
        features, exact = (
            network.forward_features(*float64_inputs(fusion.images))
            for network in (reparam.fuse(model), model)
        )
    assert relative_error(features, exact) <= 10 * FLOAT64_BOUND  # they vary more than the logits


@pytest.mark.parametrize(
    "source", each_model(hand=True, quick={"repvgg_a0", "levit_128s", "repghostnet_050"})
)
def test_float32_error_is_that_of_the_hand_written_form(source: TimmModel) -> None:
    ratios = []
    for seed in range(5):
        fusion = Fusion(source, seed, count=16)
        ours, hand = (
            median_error(run(form, fusion.images), fusion.exact)
            for form in (fusion.fused, fusion.hand)
        )
        ratios.append(ours / hand)
    assert median(ratios) <= 1.1, ratios


def test_the_whole_list_is_here() -> None:
    import timm

    families = {m.family for m in TIMM_MODELS}
    assert families <= set(timm.list_modules())
    assert len(families) == 59
    with torch.device("meta"):
        names = set(timm.list_models())
    assert {m.name for m in TIMM_MODELS} <= names
