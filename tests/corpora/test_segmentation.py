"""Fuses networks of `segmentation_models_pytorch`.

`pytest -m corpus` takes a selection, `pytest -m "corpus or heavy"` all of them.
"""

import pytest

from tests.corpora.checking import Fusion, NetworkTests, each
from tests.corpora.segmentation_networks import SEGMENTATION_NETWORKS


@pytest.fixture(scope="module", params=each(SEGMENTATION_NETWORKS))
def fusion(request: pytest.FixtureRequest) -> Fusion:
    return Fusion(request.param)


class TestSegmentation(NetworkTests):
    pass
