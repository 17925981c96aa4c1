"""What the planner chooses by each cost: `python -m tests.benchmarks planning`."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

import reparam
from tests.benchmarks.measuring import interleaved, summary
from tests.benchmarks.results import Kept
from tests.support.blocks import ThreeBranches
from tests.support.randomise import randomise_batch_norm

COSTS = ("macs", "memory", "latency")
ALONE, AGAIN = "left alone", "left alone again"


class Sum(nn.Module):
    """Branches that are added up."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = sum(branch(x) for branch in self.branches)  # type: ignore[assignment]
        return total


def conv(inner: int, outer: int, kernel: int = 1, **options: Any) -> nn.Module:
    """A convolution without a bias that keeps the size."""
    options = {"padding": kernel // 2, "bias": False, **options}
    return nn.Conv2d(inner, outer, kernel, **options)


def with_norm(layer: nn.Module, channels: int) -> nn.Module:
    return nn.Sequential(layer, nn.BatchNorm2d(channels))


Make = Callable[[], nn.Module]
BLOCKS: dict[str, tuple[Make, int, int]] = {
    "conv, batch norm": (lambda: with_norm(conv(64, 64, 3), 64), 64, 28),
    "3x3 + 1x1 + identity, each with batch norm": (lambda: ThreeBranches(64), 64, 28),
    "four 3x3 side by side": (lambda: Sum(*(conv(32, 32, 3) for _ in range(4))), 32, 28),
    "3x3 + 1x3 + 3x1": (
        lambda: Sum(
            conv(64, 64, 3),
            nn.Conv2d(64, 64, (1, 3), padding=(0, 1), bias=False),
            nn.Conv2d(64, 64, (3, 1), padding=(1, 0), bias=False),
        ),
        64,
        28,
    ),
    "depthwise 7x7 + 3x3": (
        lambda: Sum(conv(64, 64, 7, groups=64), conv(64, 64, 3, groups=64)),
        64,
        28,
    ),
    "1x1 of half the channels, then back": (
        lambda: nn.Sequential(conv(64, 32), conv(32, 64)),
        64,
        28,
    ),
    "1x1 to a sixth, then back": (lambda: nn.Sequential(conv(144, 24), conv(24, 144)), 144, 28),
    "1x1 to four times, then back": (lambda: nn.Sequential(conv(32, 128), conv(128, 32)), 32, 28),
    "1x1, then 3x3": (lambda: nn.Sequential(conv(64, 64), conv(64, 64, 3)), 64, 28),
    "1x1 to four times, then 3x3 back": (
        lambda: nn.Sequential(conv(16, 64), conv(64, 16, 3)),
        16,
        56,
    ),
    "3x3, then 3x3, without padding": (
        lambda: nn.Sequential(conv(16, 16, 3, padding=0), conv(16, 16, 3, padding=0)),
        16,
        56,
    ),
    "depthwise 3x3, then 1x1": (
        lambda: nn.Sequential(conv(64, 64, 3, groups=64), conv(64, 64)),
        64,
        28,
    ),
    "depthwise 3x3, then 1x1, of few channels": (
        lambda: nn.Sequential(conv(4, 4, 3, groups=4), conv(4, 4)),
        4,
        112,
    ),
    "3x3, then average pool": (
        lambda: nn.Sequential(conv(32, 32, 3), nn.AvgPool2d(2)),
        32,
        56,
    ),
    "average pool, then 1x1": (lambda: nn.Sequential(nn.AvgPool2d(2), conv(32, 64)), 32, 56),
    "1x1, then average pool of stride 1": (
        lambda: nn.Sequential(conv(16, 16), nn.AvgPool2d(3, 1)),
        16,
        56,
    ),
    "3x3 of two groups + 1x1": (
        lambda: Sum(conv(64, 64, 3, groups=2), conv(64, 64)),
        64,
        28,
    ),
    "depthwise 3x3 + 1x1": (lambda: Sum(conv(64, 64, 3, groups=64), conv(64, 64)), 64, 28),
    "linear, then linear, wide between": (
        lambda: nn.Sequential(nn.Linear(64, 1024), nn.Linear(1024, 64)),
        0,
        64,
    ),
    "linear + low rank": (
        lambda: Sum(
            nn.Linear(256, 256), nn.Sequential(nn.Linear(256, 8, False), nn.Linear(8, 256, False))
        ),
        0,
        256,
    ),
}
"""A block, its channels (none for linear layers) and the size of its input."""


def measure(block: str, rounds: int) -> dict[str, Any]:
    """Plan a block by each cost, and run it as it was and as each plan has it.

    Plans that do the same run as one.
    """
    make, channels, size = BLOCKS[block]
    torch.manual_seed(0)
    model = randomise_batch_norm(make().eval(), 0)
    x = torch.rand(1, channels, size, size) if channels else torch.rand(64, size)
    forms, became, same = {ALONE: model, AGAIN: deepcopy(model)}, {}, {}
    for cost in COSTS:
        fused = reparam.fuse(model, x, cost=cost)
        rows = [f"{row.operators} -> {row.result}" for row in fused.reparam_report.fused]
        became[cost] = "; ".join(rows)
        same[cost] = next((c for c in forms if c in became and became[c] == became[cost]), None)
        if not rows:
            same[cost] = ALONE
        if same[cost] is None:
            forms[cost] = fused
    runs = {form: (lambda module=module: module(x)) for form, module in forms.items()}
    with torch.inference_mode():
        times = interleaved(runs, rounds, 10)
    return {
        "block": block,
        "became": became,
        "as": {cost: form or cost for cost, form in same.items()},
        "milliseconds": summary(times),
    }


def measure_all(kept: Kept, rounds: int) -> None:
    """Measure all blocks."""
    for block in BLOCKS:
        kept.add(measure(block, 5 * rounds))
