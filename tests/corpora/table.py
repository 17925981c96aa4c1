"""Measures every network of the corpora and writes the table of docs/networks.md.

`python -m tests.corpora.table` measures all, `python -m tests.corpora.table peft` one library and
keeps what is known of the others, and `python -m tests.corpora.table --render` only writes the page
from docs/data/networks.json again.
"""

import argparse
import json
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import tests.conftest  # noqa: F401 - makes torchvision importable
from tests.corpora.architectures import kept
from tests.corpora.checking import Fusion
from tests.corpora.libraries import LIBRARIES
from tests.corpora.network import Network
from tests.support.counting import OperatorCounts
from tests.support.leftovers import leftover_batch_norms

DOCS = Path(__file__).resolve().parents[2] / "docs"
DATA = DOCS / "data" / "networks.json"
PAGE = DOCS / "networks.md"

INTRODUCTION = """\
# Networks

<!-- Written by `python -m tests.corpora.table` from docs/data/networks.json. -->

What `reparam.fuse(model)` makes of whole networks, without example inputs: convolutions / linear
layers / batch norms / additions that one forward executes, counted as they run. The networks have
the structure that their library gives them, small sizes, random weights and random batch-norm
statistics. `python -m tests.corpora.table` measures them.

*By hand* is the fused form that the library itself offers, if it does. *Left* are batch norms
that stay although a convolution or linear layer next to them could absorb them. *Traced* says
whether the whole network became one graph, or how many modules keep their own code because their
`forward` cannot be traced; what they call is fused wherever that cannot be told from outside.
*Refused* counts the rows of the report with the most frequent reason: most of them are residual
additions and attention, which are no single convolution. *Seconds* are those of `fuse`, on one
thread.
"""

OUTCOMES = ("planned", "raised", "out of time", "not built")

ARCHITECTURES_INTRODUCTION = """\
## Every architecture

`reparam.plan(model)` of the architectures that timm, torchvision and transformers list, one by one:
none may raise. Large ones are planned without numbers, on the meta device; transformers' with two
layers. *Not built* are those that their library does not build from its own defaults. The rows are
in `docs/data/architectures.json`, which `python -m tests.corpora.architectures` writes.
"""


def measure(network: Network) -> dict[str, Any]:
    """One row of the data."""
    fusion = Fusion(network)
    row: dict[str, Any] = {"library": network.library, "name": network.name}
    try:
        fusion.fused  # noqa: B018
    except Exception as error:
        before = kinds(fusion.counts)
        return row | {"before": before, "failure": f"{type(error).__name__}: {error}"}
    refused = Counter(template(r.reason) for r in fusion.report.refused)
    untraced = [r.place for r in fusion.untraced]
    return row | {
        "before": kinds(fusion.counts),
        "after": kinds(fusion.fused_counts),
        "by_hand": fusion.hand_counts and kinds(fusion.hand_counts),
        "left": len(leftover_batch_norms(fusion.fused, fusion.inputs)),
        "error": float(f"{fusion.error(fusion.fused):.0e}"),
        "refused": sum(refused.values()),
        "reasons": dict(sorted(refused.items(), key=lambda item: (-item[1], item[0]))),
        "untraced": len(untraced),
        "seconds": round(fusion.seconds, 1),
    }


def kinds(counts: OperatorCounts) -> list[int]:
    """Convolutions, linear layers, batch norms and additions."""
    return [counts.convolutions, counts.linears, counts.batch_norms, counts.additions]


def template(reason: str) -> str:
    """A reason without the names of values and without what Python said."""
    reason = re.sub(r" \(.*", "", reason, flags=re.DOTALL)
    reason = re.sub(r"(?<=^it follows )\w+", "an operator", reason)
    return re.sub(r"^\w+ is also read by \w+", "its input is also read elsewhere", reason)


def render(data: dict[str, Any]) -> str:
    """The page."""
    libraries = ", ".join(f"{name} {number}" for name, number in data["versions"].items())
    error = max(row["error"] for row in data["networks"] if "error" in row)
    sections = [
        INTRODUCTION,
        f"The largest relative difference of an output in float64 is {error:.0e}.\n",
        f"Measured with {libraries}.\n",
    ]
    for library in LIBRARIES:
        order = [network.name for network in LIBRARIES[library]]
        rows = [row for row in data["networks"] if row["library"] == library]
        rows.sort(key=lambda row: order.index(row["name"]))
        sections.append(section(library, rows))
    sections.append(architectures_section())
    return "\n".join(sections)


def architectures_section() -> str:
    """What planning makes of every architecture, by library, and those that are not planned."""
    rows = list(kept().values())
    header = ("library", "architectures", *OUTCOMES, "places that are fused")
    lines = [ARCHITECTURES_INTRODUCTION, row_of(header), row_of(["---"] * len(header))]
    for library in sorted({row.library for row in rows}):
        own = [row for row in rows if row.library == library]
        counts = Counter(row.outcome for row in own)
        numbers = len(own), *(counts[outcome] for outcome in OUTCOMES), sum(r.fused for r in own)
        lines.append(row_of([library, *map(str, numbers)]))
    others = [row for row in rows if row.outcome not in ("planned", "not built")]
    if others:
        lines += ["", row_of(["architecture", "outcome", "why"]), row_of(["---"] * 3)]
        lines += [row_of([f"{row.library} {row.name}", row.outcome, row.detail]) for row in others]
    return "\n".join([*lines, ""])


def section(library: str, rows: Sequence[dict[str, Any]]) -> str:
    """The table of one library."""
    header = ("network", "before", "fused", "by hand", "left", "traced", "refused", "seconds")
    lines = [f"## {library}\n", row_of(header), row_of(["---"] * len(header))]
    return "\n".join([*lines, *(row_of(cells(row)) for row in rows), ""])


def cells(row: dict[str, Any]) -> list[str]:
    """What the table says of one network."""
    if "failure" in row:
        return [row["name"], slashed(row["before"]), row["failure"], "", "", "", "", ""]
    reason, count = next(iter(row["reasons"].items()), ("", 0))
    return [
        row["name"],
        slashed(row["before"]),
        slashed(row["after"]),
        slashed(row["by_hand"]) if row["by_hand"] else "",
        str(row["left"]),
        f"all but {row['untraced']}" if row["untraced"] else "whole",
        f"{row['refused']}; {count} × {reason}" if count else "0",
        str(row["seconds"]),
    ]


def slashed(counts: Sequence[int]) -> str:
    """Counts as one cell."""
    return " / ".join(map(str, counts))


def row_of(texts: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in texts) + " |"


def main() -> None:
    """Measures, and writes the data and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("libraries", nargs="*", help="measure these only")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    options = parser.parse_args()
    wanted = () if options.render else options.libraries or tuple(LIBRARIES)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = json.loads(DATA.read_text())["networks"] if DATA.exists() else []
    for library in wanted:
        measured = []
        for network in LIBRARIES[library]:
            measured.append(measure(network))
            print(row_of(cells(measured[-1])), flush=True)
        rows = [row for row in rows if row["library"] != library] + measured
        versions = {name: version(name).partition("+")[0] for name in ("torch", *LIBRARIES)}
        DATA.parent.mkdir(exist_ok=True)
        DATA.write_text(json.dumps({"versions": versions, "networks": rows}, indent=1) + "\n")
    PAGE.write_text(render(json.loads(DATA.read_text())))


if __name__ == "__main__":
    main()
