"""The study of the page on expanding is what its command found, and its command runs."""

import json

import pytest

from tests.benchmarks.expansion import FORMS, accuracy_and_time
from tests.support.expansion_page import PAGE, STUDY, page


def test_the_page_shows_the_kept_study() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == page(written), "renew it: python -m tests.support.expansion_page"


def test_every_form_was_trained_with_several_seeds() -> None:
    results = json.loads(STUDY.read_text(encoding="utf-8"))["results"]
    assert {result["form"] for result in results} == FORMS.keys()
    assert all(len(result["accuracy"]) >= 5 for result in results)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_learns(name: str) -> None:
    pytest.importorskip("sklearn")
    accuracy, milliseconds = accuracy_and_time(name, seed=0, rate=0.1, epochs=6)
    assert accuracy > 0.3
    assert milliseconds > 0
