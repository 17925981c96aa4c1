"""Integer weights before and after `reparam.equalize`: `python -m tests.benchmarks.int8`.

It trains small RepVGGs on handwritten digits, fuses and equalises them, quantises them by torchao's
PT2E, and writes docs/data/int8.json and docs/int8.md. With `--render` it only writes the page.
"""

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

import reparam
from repvgg import RepVGG, RepVGGConfig
from repvgg.data import Digits, predict, split_digits, training_digits
from repvgg.training import DIGITS, train
from repvgg.training.networks import SMALL_REPVGG
from tests.benchmarks.measuring import hardware
from tests.support.correctness_page import run_versions, table, versions

DOCS = Path(__file__).resolve().parents[2] / "docs"
DATA = DOCS / "data" / "int8.json"
PAGE = DOCS / "int8.md"
TEXT = Path(__file__).with_name("int8_page.md")

LONG_REPVGG = RepVGGConfig(
    blocks=(2, 4, 8, 1), channels=(16, 16, 32, 64, 128), strides=(1, 1, 2, 2, 1)
)
NETWORKS = {"small": (SMALL_REPVGG, 20), "long": (LONG_REPVGG, 30)}
"""Each network and for how many epochs it is trained."""

FORMS = ("fused", "powers of two", "exact")
SCHEMES = tuple((bits, per) for bits in (8, 6, 4) for per in ("channel", "tensor"))
WIDTH = 8
"""Scales between 2 ** -WIDTH / 2 and 2 ** WIDTH / 2 are planted."""

_CALIBRATION = 256
_PLANTED = ", scales planted"


def accuracy(model: nn.Module, digits: Digits) -> float:
    """The share of the digits held out that is recognised."""
    right = predict(model, digits.held_out_images) == digits.held_out_labels
    return float(right.float().mean())


def quantised(model: nn.Module, digits: Digits, bits: int, per: str) -> nn.Module:
    """The model with weights of some bits and values of eight, calibrated on training images.

    Args:
        model: The model.
        digits: The images.
        bits: Of each weight.
        per: What shares one scale of the weights: "channel" or "tensor".
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.testing.pt2e._xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    largest = 2 ** (bits - 1) - 1
    config = get_symmetric_quantization_config(
        is_per_channel=per == "channel", weight_qmin=-largest, weight_qmax=largest
    )
    images = digits.train_images
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao deprecates what it ships
        quantizer = XNNPACKQuantizer().set_global(config)
        prepared = prepare_pt2e(exported(model, digits).module(), quantizer)
        with torch.no_grad():
            prepared(images[:_CALIBRATION])
        return convert_pt2e(prepared)


def exported(model: nn.Module, digits: Digits) -> ExportedProgram:
    """The model as a program, which has no methods that may return a value from within."""
    batch = torch.export.Dim("batch", min=2)
    images = digits.train_images[:8]
    return torch.export.export(model, (images,), dynamic_shapes=({0: batch},))


def badly_scaled(fused: nn.Module, seed: int) -> nn.Module:
    """A network that computes the same with random scales between each layer and the next."""
    generator = torch.Generator().manual_seed(seed)
    model = deepcopy(fused)
    layers = [part for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for made, read in pairwise(layers):
            scales = (WIDTH * (torch.rand(len(made.weight), generator=generator) - 0.5)).exp2()
            made.weight.mul_(scales.view(-1, *(1,) * (made.weight.dim() - 1)))
            made.bias.mul_(scales)
            read.weight.div_(scales.view(1, -1, *(1,) * (read.weight.dim() - 2)))
    return model


def measure(name: str, seed: int, *, epochs: int | None = None) -> Iterator[dict[str, Any]]:
    """Two rows of the data: a trained network, and the same with planted scales."""
    config, usual = NETWORKS[name]
    digits = split_digits(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RepVGG(config, num_classes=10, in_chans=1)
    recipe = DIGITS.changed(epochs=epochs or usual)
    train(model, training_digits(digits, seed), recipe, seed=seed)
    fused = reparam.fuse(model)
    yield _row(name, seed, fused, digits)
    yield _row(f"{name}{_PLANTED}", seed, badly_scaled(fused, seed), digits)


def _row(name: str, seed: int, fused: nn.Module, digits: Digits) -> dict[str, Any]:
    program = exported(fused, digits)
    exact, rounded = (reparam.equalize(program, powers_of_two=choice) for choice in (False, True))
    models = (one.module() for one in (program, rounded, exact))
    forms = dict(zip(FORMS, models, strict=True))
    spreads = [row.spread[0] for row in exact.reparam_report.equalized]
    return {
        "network": name,
        "seed": seed,
        "float32": {form: accuracy(model, digits) for form, model in forms.items()},
        "scaled": sum(row.channels[0] for row in rounded.reparam_report.equalized),
        "spread": round(max(spreads), 1),
        "quantised": [
            {
                "bits": bits,
                "per": per,
                **{
                    form: accuracy(quantised(model, digits, bits, per), digits)
                    for form, model in forms.items()
                },
            }
            for bits, per in SCHEMES
        ],
    }


def render(data: dict[str, Any]) -> str:
    """The page."""
    sections = []
    for name in (f"{network}{kind}" for network in NETWORKS for kind in ("", _PLANTED)):
        rows = [row for row in data["rows"] if row["network"] == name]
        sections.append(_section(name, rows))
    seeds = len({row["seed"] for row in data["rows"]})
    measured = f"{data['hardware']}; torchao {data['torchao']}; {versions(data)}"
    text = TEXT.read_text(encoding="utf-8")
    return (
        text.replace("{results}", "\n".join(sections).rstrip())
        .replace("{measured}", measured)
        .replace("{seeds}", str(seeds))
    )


def _section(name: str, rows: list[dict[str, Any]]) -> str:
    spreads = [row["spread"] for row in rows]
    original = [row["float32"]["fused"] for row in rows]
    lines = [["float32", "", *(_of([row["float32"][form] for row in rows]) for form in FORMS)]]
    for index, (bits, per) in enumerate(SCHEMES):
        found = [row["quantised"][index] for row in rows]
        lines.append(
            [f"{bits} bits", f"per {per}", *(_of([one[form] for one in found]) for form in FORMS)]
        )
    header = ["weights", "scales", "fused", "equalised, powers of two", "equalised"]
    gains = [
        100
        * mean(row["quantised"][index]["exact"] - row["quantised"][index]["fused"] for row in rows)
        for index in range(len(SCHEMES))
    ]
    per_tensor = [
        f"{gain:+.1f} at {bits} bits"
        for gain, (bits, per) in zip(gains, SCHEMES, strict=True)
        if per == "tensor"
    ]
    return (
        f"### {name[0].upper()}{name[1:]}\n\n"
        f"In the worst layer the largest range of a channel is {min(spreads):.0f} to "
        f"{max(spreads):.0f} times the smallest one. The float32 network recognises "
        f"{100 * mean(original):.1f} %. With one scale per tensor the equalised one recognises, "
        f"in points more than the fused one: {', '.join(per_tensor)}.\n\n{table(header, lines)}"
    )


def _of(accuracies: list[float]) -> str:
    return f"{100 * mean(accuracies):.1f} ({100 * min(accuracies):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--render", action="store_true", help="only write the page again")
    options = parser.parse_args()
    if not options.render:
        import torchao

        start = time.perf_counter()
        rows = []
        for name in NETWORKS:
            for seed in range(options.seeds):
                for row in measure(name, seed):
                    rows.append(row)
                    print(json.dumps(row), flush=True)
        rows.sort(key=lambda row: [row["network"], row["seed"]])
        data = {
            "hardware": hardware(),
            "torchao": torchao.__version__,
            **run_versions(time.perf_counter() - start),
            "rows": rows,
        }
        DATA.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(render(json.loads(DATA.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
