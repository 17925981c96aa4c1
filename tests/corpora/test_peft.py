"""Fuses networks of `peft`.

`pytest -m corpus` takes a selection, `pytest -m "corpus or heavy"` all of them.
"""

import pytest

from tests.corpora.checking import Fusion, NetworkTests, each
from tests.corpora.peft_networks import PEFT_NETWORKS


@pytest.fixture(scope="module", params=each(PEFT_NETWORKS))
def fusion(request: pytest.FixtureRequest) -> Fusion:
    return Fusion(request.param)


class TestPeft(NetworkTests):
    pass
