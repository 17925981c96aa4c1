"""The page of results is what its command writes."""

import json
from copy import deepcopy
from pathlib import Path

import pytest

from tests.mutations.mistakes import MISTAKES
from tests.support import correctness_page
from tests.support.correctness_page import (
    FAILURES,
    MUTATIONS,
    OPERATORS,
    PAGE,
    RANDOM_NETWORKS,
    keep_run,
    kept_runs,
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
    runs = kept_runs(RANDOM_NETWORKS)
    for run in runs:
        assert run["failed"].keys() == FAILURES.keys()
        assert run["operators"].keys() == OPERATORS.keys()
    runs = [*runs[:1], *deepcopy(runs[:1])]
    for run, failed in zip(runs, (1234, 3087), strict=True):
        run["failed"] = dict.fromkeys(FAILURES, failed)
    assert random_networks_text(runs).count("4,321") == len(FAILURES)


def test_runs_of_other_seeds_are_kept_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = kept_runs(RANDOM_NETWORKS)[0]
    results, written = tmp_path / "random_networks.json", tmp_path / "correctness.md"
    results.write_text("[]", encoding="utf-8")
    monkeypatch.setattr(correctness_page, "RANDOM_NETWORKS", results)
    monkeypatch.setattr(correctness_page, "PAGE", written)
    for first, last in ((10, 19), (0, 4), (20, 29), (15, 25)):
        keep_run(results, {**run, "seeds": [first, last]})
    assert [each["seeds"] for each in kept_runs(results)] == [[0, 4], [15, 25]]
    assert "seeds 0 to 4 (" in written.read_text(encoding="utf-8")


def test_a_missed_mistake_is_shown() -> None:
    data = json.loads(MUTATIONS.read_text(encoding="utf-8"))
    data["mutations"][0]["caught_by"] = None
    assert "**nothing**" in mutations_text(data)
    assert f"{len(MISTAKES) - 1} of {len(MISTAKES)} mistakes" in mutations_text(data)
