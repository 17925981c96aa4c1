"""The page of results is what its command writes."""

import json

from tests.mutations.mistakes import MISTAKES
from tests.support.correctness_page import (
    FAILURES,
    MUTATIONS,
    OPERATORS,
    PAGE,
    RANDOM_NETWORKS,
    mutations_text,
    page,
    random_networks_text,
)


def test_the_page_shows_the_kept_results() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_mistake_has_a_result() -> None:
    kept = json.loads(MUTATIONS.read_text(encoding="utf-8"))["mutations"]
    assert [(row["mistake"], row["file"]) for row in kept] == [
        (mistake.name, f"reparam/{mistake.file}") for mistake in MISTAKES
    ]


def test_every_kind_of_failure_and_operator_is_shown() -> None:
    data = json.loads(RANDOM_NETWORKS.read_text(encoding="utf-8"))
    assert data["failed"].keys() == FAILURES.keys()
    assert data["operators"].keys() == OPERATORS.keys()
    for kind in FAILURES:
        data["failed"][kind] = 4321
    assert random_networks_text(data).count("4,321") == len(FAILURES)


def test_a_missed_mistake_is_shown() -> None:
    data = json.loads(MUTATIONS.read_text(encoding="utf-8"))
    data["mutations"][0]["caught_by"] = None
    assert "**nothing**" in mutations_text(data)
    assert f"{len(MISTAKES) - 1} of {len(MISTAKES)} mistakes" in mutations_text(data)
