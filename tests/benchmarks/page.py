"""Renders docs/benchmarks.md and its plots from the kept results."""

import json
from pathlib import Path
from typing import Any

from reparam.modules.threads import LARGE
from tests.benchmarks.forms import AGAIN, BY_HAND, FX, LIMIT, OURS, TRAINING
from tests.benchmarks.planning import AGAIN as ALONE_AGAIN
from tests.benchmarks.planning import ALONE, COSTS
from tests.support.correctness_page import ROOT, table

DATA = {
    part: ROOT / "docs" / "data" / f"{part}.json"
    for part in ("inference", "fusing", "busy", "planning")
}
GPU = ROOT / "docs" / "data" / "gpu.json"
PAGE = ROOT / "docs" / "benchmarks.md"
TEXT = Path(__file__).with_name("page.md")
NOTHING = "–"

Result = dict[str, Any]


def ratio(result: Result, form: str, to: str) -> float | None:
    """The median of one form over that of another."""
    times = result["milliseconds"]
    return times[form][0] / times[to][0] if form in times and to in times else None


def spread(result: Result, form: str, again: str) -> float:
    """How far a form is from itself: two copies of it, and half the distance of the quartiles."""
    times = result["milliseconds"]
    median, low, high = times[form]
    copies = abs(times[again][0] / median - 1) if again in times else 0.0
    return float(max(copies, (high - low) / median / 2))


def render(data: dict[str, Result]) -> str:
    """The page."""
    inference, fusing, planning = (data[part] for part in ("inference", "fusing", "planning"))
    results = inference["results"]
    text = TEXT.read_text(encoding="utf-8")
    for name, value in {
        "hand": _hand(results),
        "engines": _engines(results),
        "limit": _limit(results),
        "missing": _missing(results),
        "time": _time(fusing["results"]),
        "memory": _memory(fusing["results"]),
        "growth": _growth(fusing["results"]),
        "profile": _profile(fusing["results"]),
        "busy": _busy(data["busy"]["results"]),
        "large": f"{LARGE / 1e6:.1f}",
        "planning": _planning(planning["results"]),
        "disagreeing": _disagreeing(planning["results"]),
        "gpu": _gpu(data.get("gpu")),
        **{f"{part}_measured": _measured(data[part]) for part in DATA},
    }.items():
        text = text.replace(f"{{{name}}}", value.rstrip("\n"))
    return text


def _measured(data: Result) -> str:
    names = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    return f"{data['hardware']}; {names}; {data['date']}"


def _hand(results: list[Result]) -> str:
    rows = []
    for result in results:
        if result["engine"] != "eager":
            continue
        rows.append(
            [
                result["network"],
                str(result["batch"]),
                f"{result['milliseconds'][TRAINING][0]:.1f} ms",
                _times(result, OURS, TRAINING),
                _times(result, OURS, BY_HAND),
                _times(result, OURS, FX),
                _times(result, OURS, LIMIT),
                f"± {spread(result, OURS, AGAIN):.2f}",
            ]
        )
    header = [
        "network", "batch", "training form", "fused ÷ training", "÷ by hand", "÷ torch.fx",
        "÷ bare convolutions", "spread",
    ]  # fmt: skip
    return table(header, rows)


def _limit(results: list[Result]) -> str:
    rows = [
        [
            result["network"],
            str(result["batch"]),
            _times(result, OURS, TRAINING),
            _times(result, OURS, BY_HAND),
            _times(result, OURS, LIMIT),
            _times(result, BY_HAND, LIMIT),
            f"± {spread(result, OURS, AGAIN):.2f}",
        ]
        for result in results
        if result["engine"] == "eager, channels_last" and OURS in result["milliseconds"]
    ]
    header = [
        "network", "batch", "fused ÷ training", "fused ÷ by hand", "fused ÷ bare convolutions",
        "by hand ÷ bare convolutions", "spread",
    ]  # fmt: skip
    return table(header, rows)


def _engines(results: list[Result]) -> str:
    engines = ["torch.compile", "torch.compile, freezing", "onnxruntime", "OpenVINO"]
    keys = dict.fromkeys((result["network"], result["batch"]) for result in results)
    rows = []
    for network, batch in keys:
        row = [network, str(batch)]
        for engine in engines:
            found = [
                one
                for one in results
                if (one["network"], one["batch"], one["engine"]) == (network, batch, engine)
            ]
            row.append(_times(found[0], OURS, TRAINING) if found else NOTHING)
        if row[2:] != [NOTHING] * len(engines):
            rows.append(row)
    return table(["network", "batch", *engines], rows)


def _missing(results: list[Result]) -> str:
    found: dict[str, list[str]] = {}
    for result in results:
        for form, reason in result["missing"].items():
            if reason != "there is none":
                text = f"{form}, {result['engine']}: {reason}"
                if form == FX:
                    text = f"{form}: {reason}"
                found.setdefault(text, []).append(result["network"])
    return "".join(
        f"* {', '.join(dict.fromkeys(names))}: {text.replace('<', '&lt;')}\n"
        for text, names in found.items()
    )


def _times(result: Result, form: str, to: str) -> str:
    value = ratio(result, form, to)
    return NOTHING if value is None else f"{value:.2f}"


def _time(results: list[Result]) -> str:
    rows = []
    for result in results:
        if result["what"] == "time":
            hand = result["milliseconds"]["by hand"]
            rows.append(
                [
                    result["network"],
                    f"{hand[0]:.0f} ms",
                    _times(result, "fuse", "by hand"),
                    _times(result, "fuse, verify=False", "by hand"),
                ]
            )
    header = ["network", "by hand", "`fuse` ÷ by hand", "`fuse(verify=False)` ÷ by hand"]
    return table(header, rows)


def _memory(results: list[Result]) -> str:
    rows = [
        [
            result["network"],
            result["what"].removeprefix("memory, "),
            f"{result['model'] / 2**20:.0f} MiB",
            f"{result['extra'] / result['model']:.2f} × the model",
            f"{(result['extra'] - result['model']) / result['largest_layer']:.1f} × the largest "
            "layer in float64",
        ]
        for result in results
        if result["what"].startswith("memory")
    ]
    return table(["network", "", "model", "extra memory at the peak", "beyond one copy"], rows)


def _growth(results: list[Result]) -> str:
    lines = []
    for what, unit in (("length", "layers"), ("width", "channels")):
        for result in results:
            if result["what"] == what:
                sizes = list(result["seconds"])
                rows = [
                    [size, f"{result['seconds'][size]:.3g} s", _step(result, sizes, index)]
                    for index, size in enumerate(sizes)
                ]
                lines.append(table([unit, "`fuse`", "against the line above"], rows))
    return "\n".join(lines)


def _busy(results: list[Result]) -> str:
    columns = list(results[0]["seconds"])
    rows = [
        [result["network"], *(f"{result['seconds'][column]:.2g} s" for column in columns)]
        for result in results
    ]
    heads = [
        f"{where}, {number} thread{'s' * (number != '1')}"
        for where, number in (column.split(", ") for column in columns)
    ]
    return table(["network", *heads], rows)


def _step(result: Result, sizes: list[str], index: int) -> str:
    if index == 0:
        return NOTHING
    size, before = sizes[index], sizes[index - 1]
    times = result["seconds"][size] / result["seconds"][before]
    return f"{times:.1f} × for {int(size) / int(before):.1f} × as many"


def _profile(results: list[Result]) -> str:
    profiles = [result for result in results if result["what"] == "profile"]
    phases = list(profiles[0]["parts"])
    rows = [[phase, *(f"{100 * p['parts'][phase]:.0f} %" for p in profiles)] for phase in phases]
    return table(["", *(profile["network"] for profile in profiles)], rows)


def _planning(results: list[Result]) -> str:
    rows = [
        [
            result["block"],
            *(_chosen(result, cost) for cost in COSTS),
            f"± {spread(result, ALONE, ALONE_AGAIN):.2f}",
        ]
        for result in results
    ]
    return table(["block", *(f'`cost="{cost}"`' for cost in COSTS), "spread"], rows)


def _chosen(result: Result, cost: str) -> str:
    if not result["became"][cost]:
        return "left alone"
    return _times(result, result["as"][cost], ALONE)


def _disagreeing(results: list[Result]) -> str:
    lines = []
    for result in results:
        became = {cost: result["became"][cost] or "left alone" for cost in COSTS}
        if became["macs"] != became["latency"]:
            lines.append(
                f"* {result['block']}: by multiply-adds {became['macs']} "
                f"({_chosen(result, 'macs')}), by latency {became['latency']} "
                f"({_chosen(result, 'latency')})\n"
            )
    return "".join(lines) or "* none on this machine\n"


def _gpu(data: Result | None) -> str:
    if data is None:
        return (
            "No results are kept yet: `python -m tests.benchmarks.gpu` measures on any CUDA "
            "machine and adds them here."
        )
    keys = list(dict.fromkeys(result["engine"] for result in data["results"]))
    rows = []
    for network, batch in dict.fromkeys((r["network"], r["batch"]) for r in data["results"]):
        found = {
            r["engine"]: r
            for r in data["results"]
            if (r["network"], r["batch"]) == (network, batch)
        }
        cells = [_times(found[key], OURS, TRAINING) if key in found else NOTHING for key in keys]
        rows.append([network, str(batch), *cells])
    return f"{table(['network', 'batch', *keys], rows)}\n{_measured(data)}\n"


README = ROOT / "README.md"
_BEGIN, _END = "<!-- results: begin -->\n", "<!-- results: end -->\n"
_SHOWN = (
    "repvgg_a0", "mobileone_s0", "repvit_m0_9", "fastvit_t8", "ghostnetv3_100", "repghostnet_100",
    "yolov6n", "resnet50",
)  # fmt: skip


def with_results(readme: str, inference: Result) -> str:
    """The README with its table of results, from the kept ones."""
    rows = []
    for result in inference["results"]:
        if result["network"] in _SHOWN and (result["engine"], result["batch"]) == ("eager", 1):
            counts = result["operators"]
            hand = counts.get(BY_HAND)
            rows.append(
                [
                    result["network"],
                    *(_counted(one) for one in (counts[TRAINING], counts[OURS])),
                    "has none" if hand is None else _counted(hand),
                    f"{counts[OURS][3] / counts[TRAINING][3]:.2f} ×",
                    f"{_times(result, OURS, TRAINING)} ×",
                ]
            )
    header = [
        "network", "convolutions / batch norms / additions", "fused",
        "the library's own conversion", "multiply-adds", "latency",
    ]  # fmt: skip
    before, rest = readme.split(_BEGIN)
    after = rest.split(_END)[1]
    measured = f"Measured on {_measured(inference)}.\n"
    return f"{before}{_BEGIN}{table(header, rows)}\n{measured}{_END}{after}"


def _counted(counts: list[int]) -> str:
    return " / ".join(str(count) for count in counts[:3])


def load() -> dict[str, Result]:
    """The kept results."""
    paths = {**DATA, "gpu": GPU}
    return {
        part: json.loads(path.read_text(encoding="utf-8"))
        for part, path in paths.items()
        if path.exists()
    }


def write() -> None:
    """Write the page, its plots and the table of the README."""
    from tests.benchmarks.plots import draw

    data = load()
    missing = DATA.keys() - data.keys()
    if missing:
        print(f"no page yet: {', '.join(sorted(missing))} is still to be measured")
        return
    PAGE.write_text(render(data), encoding="utf-8")
    readme = README.read_text(encoding="utf-8")
    README.write_text(with_results(readme, data["inference"]), encoding="utf-8")
    draw(data, ROOT / "docs" / "benchmarks")
