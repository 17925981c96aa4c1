"""Fuses networks of `transformers`.

`pytest -m corpus` takes a selection, `pytest -m "corpus or heavy"` all of them.
"""

import pytest

from tests.corpora.checking import Fusion, NetworkTests, each
from tests.corpora.transformers_networks import TRANSFORMERS_NETWORKS


@pytest.fixture(scope="module", params=each(TRANSFORMERS_NETWORKS))
def fusion(request: pytest.FixtureRequest) -> Fusion:
    return Fusion(request.param)


class TestTransformers(NetworkTests):
    pass
