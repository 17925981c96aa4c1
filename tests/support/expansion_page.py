"""Writes the study into docs/expand-train-fuse.md: `python -m tests.support.expansion_page`."""

import json
from statistics import mean, stdev
from typing import Any

from tests.support.correctness_page import ROOT, table, versions

STUDY = ROOT / "docs" / "data" / "expansion_study.json"
PAGE = ROOT / "docs" / "expand-train-fuse.md"


def study_text(data: dict[str, Any]) -> str:
    """Accuracies at each rate."""
    results = data["results"]
    forms = list(dict.fromkeys(result["form"] for result in results))
    rates = list(dict.fromkeys(result["rate"] for result in results))
    kept = {(result["form"], result["rate"]): result["accuracy"] for result in results}
    plain, *_ = forms
    rows = [
        [f"`{form}`", *(_accuracy(kept[form, rate], kept[plain, rate]) for rate in rates)]
        for form in forms
    ]
    header = ["trained as", *(f"learning rate {rate}" for rate in rates)]
    seeds, (training, held_out) = len(kept[plain, rates[0]]), data["images"]
    return (
        f"{table(header, rows)}\n"
        f"Percent of {held_out:,} held-out digits that the fused network reads after "
        f"{data['epochs']} epochs on {training}: mean ± standard deviation of {seeds} seeds; in "
        "brackets the mean difference to `plain` with the same seed, and in how many seeds it is "
        f"above zero.\n\n{data['hardware']}; {versions(data)}.\n"
    )


def costs_text(data: dict[str, Any]) -> str:
    """What each form keeps for the backward pass of a step, and its time, on each network."""
    steps = data["steps"]
    networks = list(dict.fromkeys(step["network"] for step in steps))
    header = ["trained as", *(f"{name}: {what}" for name in networks for what in _COSTS)]
    forms = list(dict.fromkeys(step["form"] for step in steps))
    kept = {(step["form"], step["network"]): step for step in steps}
    rows = [
        [f"`{form}`", *(cell for name in networks for cell in _costs(kept[form, name]))]
        for form in forms
    ]
    sizes = "; ".join(
        f"{name} with {' x '.join(map(str, kept[forms[0], name]['images']))}, "
        f"{kept[forms[0], name]['milliseconds']:.1f} ms plain"
        for name in networks
    )
    return (
        f"{table(header, rows)}\n"
        "What autograd saves in a forward pass, in KiB: for each image, and besides, however many "
        "images there are (weights, and what kernels are computed of); each storage counted once. "
        "The time is that of a forward and a backward pass over that of the plain network, the "
        f"median of rounds in which the forms take turns ({sizes}).\n\n"
        f"{data['hardware']}; {versions(data)}.\n"
    )


_COSTS = ("for each image", "besides", "time")


def _costs(step: dict[str, Any]) -> list[str]:
    sizes = (f"{step[name] / 1024:,.1f}" for name in ("bytes_per_image", "other_bytes"))
    return [*sizes, f"{step['time']:.1f} ×"]


def _accuracy(ours: list[float], plain: list[float]) -> str:
    percent = [100 * value for value in ours]
    gains = [100 * (a - b) for a, b in zip(ours, plain, strict=True)]
    text = f"{mean(percent):.2f} ± {stdev(percent):.2f}"
    if ours is plain:
        return text
    return f"{text} ({mean(gains):+.2f}; {sum(gain > 0 for gain in gains)} of {len(gains)})"


def page(written: str) -> str:
    """The page with the kept results."""
    data = json.loads(STUDY.read_text(encoding="utf-8"))
    for name, render in (("study", study_text), ("costs", costs_text)):
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        before, rest = written.split(begin)
        written = f"{before}{begin}{render(data[name])}{end}{rest.split(end)[1]}"
    return written


def write_page() -> None:
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write_page()
