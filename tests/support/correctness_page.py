"""Writes docs/correctness.md from the kept results: `python -m tests.support.correctness_page`."""

import json
import platform
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import reparam

ROOT = Path(__file__).resolve().parents[2]
RANDOM_NETWORKS = ROOT / "docs" / "data" / "random_networks.json"
EXPANDED_NETWORKS = ROOT / "docs" / "data" / "expanded_networks.json"
MUTATIONS = ROOT / "docs" / "data" / "mutations.json"
PAGE = ROOT / "docs" / "correctness.md"

FAILURES = {
    "wrong": "gave another result",
    "raised": "raised an error",
    "dearer": "needed more multiply-adds or more operators than before",
    "changed": "left the user's model, inputs or random state changed",
    "unexplained": "kept something that the report did not explain",
    "other": "could not be used as before (copied, stored, loaded, fused again)",
}

OPERATORS = {
    "convolutions": "convolutions",
    "linears": "linear layers",
    "batch_norms": "batch norms",
    "additions": "additions",
    "multiplications": "multiplications",
    "affine": "**all of these**",
    "average_pools": "average pools",
    "pads": "pads",
    "total": "operators of any kind",
    "macs": "multiply-adds",
}


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def run_versions(seconds: float) -> dict[str, Any]:
    """When, how long and with which versions something ran."""
    return {
        "seconds": round(seconds),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {
            "reparam": reparam.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def versions(data: dict[str, Any]) -> str:
    names = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    return f"{names}; {data['date']}; {data['seconds']:,} s"


def random_networks_text(runs: Sequence[dict[str, Any]]) -> str:
    """What came out of several runs together, each of other seeds."""
    failed = table(
        ["of these networks", "number"],
        [
            [text, f"{sum(run['failed'][kind] for run in runs):,}"]
            for kind, text in FAILURES.items()
        ],
    )
    operators = table(
        ["executed in one forward", "before", "after", "remaining"],
        [[text, *_remaining(runs, kind)] for kind, text in OPERATORS.items()],
    )
    times = sum((Counter(run["reasons"]) for run in runs), Counter[str]())
    reasons = table(
        ["reason why an operator stayed", "times"],
        [[reason, f"{count:,}"] for reason, count in times.most_common(15)],
    )
    tried = f"{sum(run['networks'] for run in runs):,} networks: {', '.join(map(_seeds, runs))}."
    return f"{tried}\n\n{failed}\n{operators}\n{reasons}"


def _remaining(runs: Sequence[dict[str, Any]], kind: str) -> list[str]:
    """How often an operator is executed before and after fusing, and which share remains."""
    before, after = (
        sum(run["operators"][kind][form] for run in runs) for form in ("before", "after")
    )
    return [f"{before:,}", f"{after:,}", f"{after / before:.0%}" if before else ""]


def _seeds(run: dict[str, Any]) -> str:
    first, last = run["seeds"]
    return f"seeds {first:,} to {last:,} ({versions(run)})"


def expanded_networks_text(runs: Sequence[dict[str, Any]]) -> str:
    """What came out of several runs of expanded networks together, each of other seeds."""
    networks, with_layers, layers = (
        sum(run[kind] for run in runs) for kind in ("networks", "expanded", "layers")
    )
    failed = {kind: sum(run["failed"][kind] for run in runs) for kind in FAILURES}
    told = ", ".join(f"{count:,} {FAILURES[kind]}" for kind, count in failed.items() if count)
    return (
        f"{networks:,} networks: {', '.join(map(_seeds, runs))}. In {with_layers:,} of them "
        f"{layers:,} layers were expanded, in the others there is none. "
        f"{told or 'None failed'}.\n"
    )


def keep_run(results: Path, run: dict[str, Any]) -> None:
    """Keep what came out of some seeds, beside the runs of others, and write the page."""
    runs = [
        kept
        for kept in kept_runs(results)
        if kept["seeds"][1] < run["seeds"][0] or run["seeds"][1] < kept["seeds"][0]
    ]
    runs = sorted([*runs, run], key=lambda each: each["seeds"])
    results.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    write_page()


def kept_runs(results: Path) -> list[dict[str, Any]]:
    """The runs whose results are kept, in the order of their seeds."""
    runs: list[dict[str, Any]] = json.loads(results.read_text(encoding="utf-8"))
    return runs


def mutations_text(data: dict[str, Any]) -> str:
    rows = [
        [row["mistake"], f"`{row['file']}`", _caught(row), f"{row['seconds']:.0f}"]
        for row in data["mutations"]
    ]
    caught = sum(row["caught_by"] is not None for row in data["mutations"])
    return (
        f"{caught} of {len(rows)} mistakes are caught ({versions(data)}).\n\n"
        f"{table(['mistake', 'file', 'caught first by', 'seconds'], rows)}"
    )


def page() -> str:
    """The whole page, from the kept results."""
    text = (ROOT / "tests" / "support" / "correctness_page.md").read_text(encoding="utf-8")
    renders = {
        RANDOM_NETWORKS: random_networks_text,
        EXPANDED_NETWORKS: expanded_networks_text,
        MUTATIONS: mutations_text,
    }
    for path, render in renders.items():
        data = json.loads(path.read_text(encoding="utf-8"))
        text = text.replace(f"{{{path.stem}}}", render(data).rstrip())
    return text


def write_page() -> None:
    PAGE.write_text(page(), encoding="utf-8")


def _caught(row: dict[str, Any]) -> str:
    return f"`{row['caught_by']}`" if row["caught_by"] else "**nothing**"


if __name__ == "__main__":
    write_page()
