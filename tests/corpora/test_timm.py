"""Fuses one network of each of timm's families with batch norm.

The default run takes some small ones. `pytest -m "" tests/corpora` takes them all, and
`pytest -m corpus` those that the default run left out.
"""

from statistics import median

import pytest
import torch

from tests.corpora.checking import Fusion, NetworkTests, each
from tests.corpora.timm_models import TIMM_MODELS, TimmModel
from tests.support.errors import FLOAT64_BOUND, median_error, relative_error, run


@pytest.fixture(scope="module", params=each(TIMM_MODELS))
def fusion(request: pytest.FixtureRequest) -> Fusion:
    return Fusion(request.param)


class TestTimm(NetworkTests):
    def test_float32_error_stays_near_the_networks_own(self, fusion: Fusion) -> None:
        single = Fusion(fusion.network, dtype=torch.float32)
        assert single.error(single.fused) <= 4 * (single.error(single.model) + 1.2e-7)

    def test_methods_other_than_forward_stay(self, fusion: Fusion) -> None:
        with torch.no_grad():
            features, exact = (
                network.forward_features(*fusion.inputs) for network in (fusion.fused, fusion.model)
            )
        # they vary more than the logits
        assert relative_error(features, exact) <= 10 * FLOAT64_BOUND


@pytest.mark.parametrize(
    "network",
    [pytest.param(m, id=m.name, marks=pytest.mark.corpus) for m in TIMM_MODELS if m.hand],
)
def test_float32_error_is_that_of_the_hand_written_form(network: TimmModel) -> None:
    ratios = []
    for seed in range(5):
        fusion = Fusion(network, seed, count=16, dtype=torch.float32)
        assert fusion.hand is not None
        ours, hand = (
            median_error(run(form, fusion.inputs), fusion.exact)
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
