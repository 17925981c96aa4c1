"""Writes the study into docs/expand-train-fuse.md: `python -m tests.support.expansion_page`."""

import json
from statistics import mean, median, stdev
from typing import Any

from tests.support.correctness_page import ROOT, table, versions

STUDY = ROOT / "docs" / "data" / "expansion_study.json"
PAGE = ROOT / "docs" / "expand-train-fuse.md"
_BEGIN, _END = "<!-- study: begin -->\n", "<!-- study: end -->\n"


def study_text(data: dict[str, Any]) -> str:
    """Accuracies at each rate, and the time of a step over that of the plain network."""
    results = data["results"]
    forms = list(dict.fromkeys(result["form"] for result in results))
    rates = list(dict.fromkeys(result["rate"] for result in results))
    kept = {(result["form"], result["rate"]): result["accuracy"] for result in results}
    times = {form: _step(results, form) for form in forms}
    plain, *_ = forms
    rows = [
        [
            f"`{form}`",
            *(_accuracy(kept[form, rate], kept[plain, rate]) for rate in rates),
            f"{times[form] / times[plain]:.1f} ×",
        ]
        for form in forms
    ]
    header = ["trained as", *(f"learning rate {rate}" for rate in rates), "time of a step"]
    seeds, (training, held_out) = len(kept[plain, rates[0]]), data["images"]
    return (
        f"{table(header, rows)}\n"
        f"Percent of {held_out:,} held-out digits that the fused network reads after "
        f"{data['epochs']} epochs on {training}: mean ± standard deviation of {seeds} seeds; in "
        "brackets the mean difference to `plain` with the same seed, and in how many seeds it is "
        "above zero. The time is the processor's, forward and backward; the plain network needs "
        f"{times[plain]:.1f} ms a step.\n\n"
        f"{data['hardware']}; {versions(data)}.\n"
    )


def _step(results: list[dict[str, Any]], form: str) -> float:
    return median(ms for one in results if one["form"] == form for ms in one["milliseconds"])


def _accuracy(ours: list[float], plain: list[float]) -> str:
    percent = [100 * value for value in ours]
    gains = [100 * (a - b) for a, b in zip(ours, plain, strict=True)]
    text = f"{mean(percent):.2f} ± {stdev(percent):.2f}"
    if ours is plain:
        return text
    return f"{text} ({mean(gains):+.2f}; {sum(gain > 0 for gain in gains)} of {len(gains)})"


def page(written: str) -> str:
    """The page with the kept results."""
    before, rest = written.split(_BEGIN)
    after = rest.split(_END)[1]
    data = json.loads(STUDY.read_text(encoding="utf-8"))
    return f"{before}{_BEGIN}{study_text(data)}{_END}{after}"


def write_page() -> None:
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write_page()
