"""Random networks expanded, moved, and fused: what any of the forms computes is the same."""

import pytest

from tests.random_networks.expanded import check

FOUND = [20006, 21682, 21949]
"""A pool over three axes that are shorter than it; layers that stay beside live operators."""


@pytest.mark.parametrize("seed", [*range(60), *FOUND])
def test_random_networks(seed: int) -> None:
    check(seed)


def test_most_networks_have_layers_to_expand() -> None:
    assert sum(map(bool, map(check, range(60, 72)))) > 6
