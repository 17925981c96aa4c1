"""A small study on digits, whether branches help: `python -m tests.benchmarks.expansion`.

All forms of a seed start as the same function, see the same batches and are judged as what is
deployed, the fused network.
"""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import click
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

import reparam
from reparam import blocks
from repvgg.data import split_digits
from tests.benchmarks.measuring import processor_and_threads
from tests.support.correctness_page import run_versions
from tests.support.expansion_page import STUDY, write_page
from tests.support.saved_bytes import saved_per_image

TRAINING, BATCH = 300, 50
"""So few images to train on that there is something to gain, and the others to judge by."""

Form = Callable[[nn.Module, Tensor], nn.Module]


def _expanded(block: Any, **norms: Any) -> Form:
    def made(model: nn.Module, images: Tensor) -> nn.Module:
        calibrate = {"calibrate": [images]} if norms else {}
        return reparam.expand(model, block, where=nn.Conv2d, **norms, **calibrate)

    return made


FORMS: dict[str, Form] = {
    "plain": lambda model, images: model,
    "dbb": _expanded(blocks.dbb()),
    "dbb, online": _expanded(blocks.dbb()),
    "mobile_one": _expanded(blocks.mobile_one()),
    "mobile_one, online": _expanded(blocks.mobile_one()),
    'dbb, norm="each"': _expanded(blocks.dbb(), norm="each"),
}


def network() -> nn.Module:
    """Four convolutions, each with a norm, and a linear layer."""
    layers: list[nn.Module] = []
    for into, out, stride in ((1, 8, 1), (8, 16, 2), (16, 16, 1), (16, 32, 2)):
        conv = nn.Conv2d(into, out, 3, stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "the network of the study": (network, (BATCH, 1, 8, 8)),
    "resnet18": (lambda: timm.create_model("resnet18"), (16, 3, 96, 96)),
}
"""Where the costs of a step are measured, and on what images."""


def trained_form(name: str, model: nn.Module, images: Tensor) -> tuple[nn.Module, nn.Module]:
    """A model with branches, and what is trained of it: the same, or its live form."""
    made = FORMS[name](model.train(), images)
    return made, reparam.fuse(made, live=True) if name.endswith("online") else made


def accuracy(name: str, seed: int, rate: float, epochs: int) -> float:
    """The accuracy of what is deployed."""
    digits = split_digits(seed)
    images = torch.cat([digits.train_images, digits.held_out_images])
    labels = torch.cat([digits.train_labels, digits.held_out_labels])
    torch.manual_seed(seed)
    made, trained = trained_form(name, network(), images[:TRAINING])
    optimizer = torch.optim.SGD(trained.parameters(), rate, momentum=0.9, weight_decay=1e-4)
    steps = epochs * TRAINING // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(TRAINING, generator=order).split(BATCH):
            loss = functional.cross_entropy(trained(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    branches = copy.deepcopy(made)
    branches.load_state_dict(trained.state_dict())
    deployed = reparam.fuse(branches.eval())
    with torch.no_grad():
        right = deployed(images[TRAINING:]).argmax(1) == labels[TRAINING:]
    return float(right.float().mean())


def costs_of_a_step(where: str, rounds: int) -> list[dict[str, Any]]:
    """What each form keeps for the backward pass, and its time over that of the plain network.

    The forms take turns, in another order every round, so that whatever else the machine does hits
    all.
    """
    make, shape = NETWORKS[where]
    torch.manual_seed(0)
    images, model = torch.randn(shape), make()
    forms = {name: trained_form(name, copy.deepcopy(model), images)[1] for name in FORMS}
    kept = {name: saved_per_image(form, images) for name, form in forms.items()}
    spent: dict[str, list[float]] = {name: [] for name in FORMS}
    for turn in range(rounds + 1):
        names = [*FORMS][turn % len(FORMS) :] + [*FORMS][: turn % len(FORMS)]
        now = {name: _milliseconds(forms[name], images) for name in names}
        for name in names if turn else ():  # the first round warms up
            spent[name].append(now[name])
    return [
        {
            "network": where,
            "images": list(shape),
            "form": name,
            "bytes_per_image": round(kept[name][0]),
            "other_bytes": round(kept[name][1]),
            "parameters": 4 * sum(p.numel() for p in forms[name].parameters()),
            "milliseconds": round(median(times), 2),
            "time": round(median(a / b for a, b in zip(times, spent["plain"], strict=True)), 2),
        }
        for name, times in spent.items()
    ]


def _milliseconds(model: nn.Module, images: Tensor) -> float:
    """The time of one forward and backward pass."""
    start = time.perf_counter()
    model(images).square().mean().backward()
    return 1e3 * (time.perf_counter() - start)


def study(seeds: int, epochs: int, rates: tuple[float, ...]) -> dict[str, Any]:
    """How well every form does with every seed and rate."""
    start = time.monotonic()
    runs: dict[tuple[str, float], list[float]] = {}
    for seed in range(seeds):
        for rate, name in itertools.product(rates, FORMS):
            runs.setdefault((name, rate), []).append(accuracy(name, seed, rate, epochs))
        print(f"{time.monotonic() - start:5.0f} s  seed {seed}", flush=True)
    results = [
        {"form": name, "rate": rate, "accuracy": [round(value, 5) for value in kept]}
        for (name, rate), kept in runs.items()
    ]
    return {
        "images": [TRAINING, 1797 - TRAINING],
        "epochs": epochs,
        "results": results,
        "hardware": processor_and_threads(),
        **run_versions(time.monotonic() - start),
    }


def costs(rounds: int) -> dict[str, Any]:
    """What a step of every form costs on every network."""
    start = time.monotonic()
    steps = [row for where in NETWORKS for row in costs_of_a_step(where, rounds)]
    return {
        "steps": steps,
        "hardware": processor_and_threads(),
        **run_versions(time.monotonic() - start),
    }


@click.command()
@click.option("--seeds", default=5, show_default=True)
@click.option("--epochs", default=15, show_default=True)
@click.option("--rate", "rates", multiple=True, type=float, default=(0.1, 0.3))
@click.option("--rounds", default=21, show_default=True, help="Steps that are timed of each form.")
@click.option("--only", type=click.Choice(["study", "costs"]), help="Keep the other half.")
def main(seeds: int, epochs: int, rates: tuple[float, ...], rounds: int, only: str | None) -> None:
    """Train every form with every seed and rate, measure what a step costs, renew the page."""
    torch.set_num_threads(1)
    data = json.loads(STUDY.read_text(encoding="utf-8"))
    if only != "costs":
        data["study"] = study(seeds, epochs, rates)
    if only != "study":
        data["costs"] = costs(rounds)
    STUDY.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    write_page()


if __name__ == "__main__":
    main()
