"""A shape that no network can have is refused."""

from __future__ import annotations

from typing import Any

import pytest

import reparam
from repvgg import RepVGGConfig

SMALL: dict[str, Any] = {"blocks": (1, 2, 3, 1), "channels": (8, 16, 16, 32, 64)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": (1, 1, 1)}, r"`blocks` needs 4 numbers, got \(1, 1, 1\)"),
        ({"channels": (8, 8, 8, 8)}, "`channels` needs 5 numbers"),
        ({"strides": (2, 2)}, "`strides` needs 5 numbers"),
        ({"blocks": (1, 0, 1, 1)}, "`blocks` must be a positive integer, got 0"),
        ({"channels": (8, 8, 8, 8, 8.0)}, r"`channels` must be a positive integer, got 8\.0"),
        ({"groups": 0}, "`groups` must be a positive integer, got 0"),
        ({"groups": 3}, "8 channels cannot be split into 3 groups"),
        ({"squeeze_excitation": True}, "by 16: a stage of 8 has too few"),
        ({"plus": True, "blocks": (1, 1, 2, 1), "channels": (3, 8, 8, 8, 8)}, "by 4: a stage of 3"),
        ({"plus": True, "blocks": (1, 2, 3, 1)}, "two halves: 3 blocks cannot be halved"),
        ({"plus": True, "groups": 2}, "a RepVGGplus has no groups"),
        ({"plus": True, "squeeze_excitation": True}, "squeeze-and-excitation after the ReLU only"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(reparam.ReparamError, match=message):
        RepVGGConfig(**{**SMALL, **changes})
