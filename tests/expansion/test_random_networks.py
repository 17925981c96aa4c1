"""Random networks expanded, moved, and fused: what any of the forms computes is the same."""

import pytest

from tests.random_networks.expanded import check


@pytest.mark.parametrize("seed", range(60))
def test_random_networks(seed: int) -> None:
    check(seed)


def test_most_networks_have_layers_to_expand() -> None:
    assert sum(map(bool, map(check, range(60, 72)))) > 6
