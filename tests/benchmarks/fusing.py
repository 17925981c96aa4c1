"""What `reparam.fuse` itself costs: `python -m tests.benchmarks fusing`."""

import cProfile
import json
import pstats
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import timm
import torch
from timm.utils import reparameterize_model
from torch import nn
from torch.fx.experimental.optimization import fuse as fuse_with_fx

import reparam
from tests.benchmarks.measuring import extra_peak_bytes, interleaved, summary
from tests.benchmarks.results import Kept
from tests.support.randomise import randomise_batch_norm

NETWORKS = ("repvgg_a0", "repvgg_b1", "repvgg_b3", "mobileone_s1", "resnet50", "resnet152")
LENGTHS = (100, 300, 1000, 3000, 10000)
WIDTHS = (16, 64, 256, 1024)
PHASES = {
    "the model's code is traced": "capture/tracing_attempts.py:trace_forward",
    "facts of the graph": "analysis/facts.py:gather",
    "rules are applied": "analysis/lifting.py:lift",
    "methods besides forward are read": "capture/reading/modules_used.py:called_by_methods",
    "the planner decides": "planning/planner.py:decide",
    "new weights are computed": "algebra/kernels.py:evaluate",
    "regions are compared": "verification/region_check.py:compared",
    "the network runs once on a random input": "verification/call_samples.py:sample_calls",
    "modules with new code are compared": "verification/module_check.py:run",
    "the graph is edited": "rewriting/rewriter.py:rewrite",
    "new code is put into the modules": "rewriting/grafting.py:graft",
    "the model is copied": "modules/copying.py:copy_model",
    "what remains gets memory of its own": "modules/copying.py:copy_parameters",
}
"""What happens in `reparam.fuse`, by file and function; comparing includes computing weights."""


def network(name: str) -> nn.Module:
    return randomise_batch_norm(timm.create_model(name).eval(), 0)


def by_hand(model: nn.Module) -> nn.Module:
    """What one would do by hand: a copy, a look at the graph, and the model's own conversion."""
    if any(hasattr(module, "reparameterize") for module in model.modules()):
        model = deepcopy(model)
        torch.fx.symbolic_trace(model)
        converted: nn.Module = reparameterize_model(model, inplace=True)
        return converted
    return fuse_with_fx(model)  # copies and traces, too


def chain(length: int, channels: int = 4) -> nn.Module:
    """As many convolutions, each with a batch norm and an activation."""
    layers: list[nn.Module] = []
    for _ in range(length):
        convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
    return randomise_batch_norm(nn.Sequential(*layers).eval(), 0)


def compare(model: nn.Module, name: str, rounds: int, seconds: float = 60) -> dict[str, Any]:
    """The time of `fuse`, verified or not, and of the conversion by hand."""
    times = interleaved(
        {
            "fuse": lambda: reparam.fuse(model),
            "fuse, verify=False": lambda: reparam.fuse(model, verify=False),
            "by hand": lambda: by_hand(model),
        },
        rounds,
        seconds,
    )
    return {"what": "time", "network": name, "milliseconds": summary(times)}


def growth(
    what: str, models: Iterable[tuple[int, Callable[[], nn.Module]]], repeats: int = 3
) -> dict[str, Any]:
    """The least time of `fuse` for models of several sizes."""
    seconds: dict[str, float] = {}
    for size, make in models:
        model = make()
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            reparam.fuse(model)
            taken.append(time.perf_counter() - start)
        seconds[str(size)] = round(min(taken), 4)
    return {"what": what, "seconds": seconds}


def profiled(model: nn.Module, name: str) -> dict[str, Any]:
    """Where the time of one call goes, as parts of the whole."""
    reparam.fuse(model)
    profile = cProfile.Profile()
    profile.runcall(reparam.fuse, model)
    found: dict[str, float] = {}
    for (path, _, function), (_, _, _, cumulative, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        found[f"{path.rpartition('/reparam/')[2]}:{function}"] = cumulative
    whole = found["fusing/driver.py:fuse"]
    parts = {phase: found.get(place, 0.0) / whole for phase, place in PHASES.items()}
    return {
        "what": "profile",
        "network": name,
        "parts": {phase: round(part, 4) for phase, part in parts.items()},
    }


def memory(name: str, *, verify: bool) -> dict[str, Any]:
    """The peak of memory, in a process of its own, since freed memory stays resident."""
    model = network(name)
    reparam.fuse(timm.create_model("test_byobnet").eval())  # imports and caches
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    extra = extra_peak_bytes(lambda: reparam.fuse(model, verify=verify))
    return {
        "what": "memory, verified" if verify else "memory, not verified",
        "network": name,
        "extra": extra,
        "model": sum(t.numel() * t.element_size() for t in model.state_dict().values()),
        "largest_layer": 8 * max(layer.weight.numel() for layer in layers),
    }


def measure_all(kept: Kept, rounds: int) -> None:
    """Measure everything anew."""
    for name in NETWORKS:
        kept.add(compare(network(name), name, rounds))
    for name in ("repvgg_a0", "repvgg_b3", "resnet152"):
        kept.add(profiled(network(name), name))
        for how in ("verified", "unverified"):
            command = [sys.executable, "-m", "tests.benchmarks.fusing", name, how]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            kept.add(json.loads(output.splitlines()[-1]))
    kept.add(growth("length", [(n, lambda n=n: chain(n)) for n in LENGTHS]))  # type: ignore[misc]
    kept.add(growth("width", [(n, lambda n=n: chain(8, n)) for n in WIDTHS]))  # type: ignore[misc]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(memory(sys.argv[1], verify=sys.argv[2] == "verified")))
