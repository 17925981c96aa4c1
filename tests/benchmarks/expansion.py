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
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.nn import functional

import reparam
from reparam import blocks
from repvgg.data import split_digits
from tests.benchmarks.measuring import processor_and_threads
from tests.support.correctness_page import run_versions
from tests.support.expansion_page import STUDY, write_page

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


def accuracy_and_time(name: str, seed: int, rate: float, epochs: int) -> tuple[float, float]:
    """The accuracy of what is deployed, and the milliseconds of the processor for one step."""
    digits = split_digits(seed)
    images = torch.cat([digits.train_images, digits.held_out_images])
    labels = torch.cat([digits.train_labels, digits.held_out_labels])
    torch.manual_seed(seed)
    made = FORMS[name](network().train(), images[:TRAINING])
    trained = reparam.fuse(made, live=True) if name.endswith("online") else made
    optimizer = torch.optim.SGD(trained.parameters(), rate, momentum=0.9, weight_decay=1e-4)
    steps = epochs * TRAINING // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    order = torch.Generator().manual_seed(seed)
    start = time.process_time()
    for _ in range(epochs):
        for batch in torch.randperm(TRAINING, generator=order).split(BATCH):
            loss = functional.cross_entropy(trained(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    spent = 1e3 * (time.process_time() - start) / steps
    branches = copy.deepcopy(made)
    branches.load_state_dict(trained.state_dict())
    deployed = reparam.fuse(branches.eval())
    with torch.no_grad():
        right = deployed(images[TRAINING:]).argmax(1) == labels[TRAINING:]
    return float(right.float().mean()), spent


@click.command()
@click.option("--seeds", default=5, show_default=True)
@click.option("--epochs", default=15, show_default=True)
@click.option("--rate", "rates", multiple=True, type=float, default=(0.1, 0.3))
def main(seeds: int, epochs: int, rates: tuple[float, ...]) -> None:
    """Train every form with every seed and rate, and renew the page."""
    torch.set_num_threads(1)
    start = time.monotonic()
    runs: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for seed in range(seeds):
        for rate, name in itertools.product(rates, FORMS):
            runs.setdefault((name, rate), []).append(accuracy_and_time(name, seed, rate, epochs))
        print(f"{time.monotonic() - start:5.0f} s  seed {seed}", flush=True)
    results = [
        {
            "form": name,
            "rate": rate,
            "accuracy": [round(accuracy, 5) for accuracy, _ in kept],
            "milliseconds": [round(spent, 2) for _, spent in kept],
        }
        for (name, rate), kept in runs.items()
    ]
    data = {
        "hardware": processor_and_threads(),
        "images": [TRAINING, 1797 - TRAINING],
        "epochs": epochs,
        "results": results,
        **run_versions(time.monotonic() - start),
    }
    STUDY.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    write_page()


if __name__ == "__main__":
    main()
