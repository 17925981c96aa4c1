"""Fuses networks of `ultralytics`.

`pytest -m corpus` takes a selection, `pytest -m "corpus or heavy"` all of them.
"""

import pytest

from tests.corpora.checking import Fusion, NetworkTests, each
from tests.corpora.ultralytics_networks import ULTRALYTICS_NETWORKS


@pytest.fixture(scope="module", params=each(ULTRALYTICS_NETWORKS))
def fusion(request: pytest.FixtureRequest) -> Fusion:
    return Fusion(request.param)


class TestUltralytics(NetworkTests):
    pass
