"""The study of the page on expanding is what its command found, and its command runs."""

import json

import pytest

from tests.benchmarks.expansion import FORMS, NETWORKS, accuracy, costs_of_a_step
from tests.support.expansion_page import PAGE, STUDY, page


def test_the_page_shows_the_kept_study() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == page(written), "renew it: python -m tests.support.expansion_page"


def test_every_form_was_trained_with_several_seeds() -> None:
    results = json.loads(STUDY.read_text(encoding="utf-8"))["study"]["results"]
    assert {result["form"] for result in results} == FORMS.keys()
    assert all(len(result["accuracy"]) >= 5 for result in results)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_learns(name: str) -> None:
    pytest.importorskip("sklearn")
    assert accuracy(name, seed=0, rate=0.1, epochs=6) > 0.3


def test_the_online_form_keeps_for_each_image_what_the_plain_network_keeps() -> None:
    kept = json.loads(STUDY.read_text(encoding="utf-8"))
    measured = costs_of_a_step("the network of the study", rounds=1)
    for steps in (kept["costs"]["steps"], measured):
        saved = {(step["network"], step["form"]): step["bytes_per_image"] for step in steps}
        for (where, form), size in saved.items():
            if form.endswith("online"):
                assert size == saved[where, "plain"] < saved[where, form.partition(",")[0]] / 2
    assert {step["network"] for step in kept["costs"]["steps"]} == NETWORKS.keys()
