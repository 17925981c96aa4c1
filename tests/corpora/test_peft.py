"""Fuses networks with adapters of `peft`.

`pytest -m corpus` takes a selection, `pytest -m "corpus or heavy"` all of them.
"""

import pytest

from tests.corpora.checking import Fusion, NetworkTests, each
from tests.corpora.peft_networks import PEFT_NETWORKS
from tests.support.errors import FLOAT64_BOUND, relative_errors, run


@pytest.fixture(scope="module", params=each(PEFT_NETWORKS))
def fusion(request: pytest.FixtureRequest) -> Fusion:
    return Fusion(request.param)


class TestPeft(NetworkTests):
    def test_outputs_are_those_of_merged_adapters(self, fusion: Fusion) -> None:
        assert fusion.hand is not None
        ours, merged = (run(model, fusion.inputs) for model in (fusion.fused, fusion.hand))
        assert max(relative_errors(ours, merged)) <= FLOAT64_BOUND

    def test_nothing_is_left_of_the_adapters(self, fusion: Fusion) -> None:
        assert fusion.hand_counts is not None
        if not fusion.network.within_reach:
            pytest.skip("its weights are computed in forward")
        context = f"{fusion.fused_counts}\nmerged {fusion.hand_counts}"
        assert fusion.fused_counts.multiplications <= fusion.hand_counts.multiplications, context
        assert fusion.fused_counts.total <= fusion.hand_counts.total, context
