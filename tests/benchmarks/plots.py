"""Draws the plots of docs/benchmarks.md as SVG."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.benchmarks.forms import BY_HAND, FX, LIMIT, OURS, TRAINING

COLOURS = {BY_HAND: "#8a8f98", FX: "#c9a227", OURS: "#2a6fdb", LIMIT: "#d0d4da"}


def draw(data: dict[str, dict[str, Any]], folder: Path) -> None:
    """Write all plots into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    results = [
        result
        for result in data["inference"]["results"]
        if result["engine"] == "eager" and result["batch"] == 1
    ]
    with mpl.rc_context({"svg.hashsalt": "reparam", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 0.42 * len(results) + 1.2), layout="constrained")
        axes = figure.add_subplot()
        height = 0.8 / len(COLOURS)
        for index, (form, colour) in enumerate(COLOURS.items()):
            bars = [
                (row, result["milliseconds"][form][0] / result["milliseconds"][TRAINING][0])
                for row, result in enumerate(results)
                if form in result["milliseconds"]
            ]
            places = [row - 0.4 + (index + 0.5) * height for row, _ in bars]
            axes.barh(places, [value for _, value in bars], height, color=colour, label=form)
        axes.axvline(1, color="#444", linewidth=0.8)
        axes.set_yticks(range(len(results)), [result["network"] for result in results])
        axes.invert_yaxis()
        axes.set_xlabel("latency over that of the training form, batch 1, eager")
        axes.legend(loc="lower right", fontsize="small")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        figure.savefig(folder / "inference.svg", metadata={"Date": None})
