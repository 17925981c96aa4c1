"""What `reparam.fuse` costs, as ratios: `python -m tests.benchmarks.fuse_time`."""

import subprocess
import sys
from copy import deepcopy

import timm
import torch
from timm.utils import reparameterize_model
from torch import nn

import reparam
from tests.benchmarks.measuring import extra_peak_bytes, hardware, interleaved
from tests.support.randomise import randomise_batch_norm

MEBI = 2**20


def trace_and_reparameterize(model: nn.Module) -> nn.Module:
    """What one would do by hand: a copy, a look at the graph, and the model's own conversion."""
    model = deepcopy(model)
    torch.fx.symbolic_trace(model)
    return reparameterize_model(model, inplace=True)


def compare_with_hand_written(name: str) -> None:
    model = randomise_batch_norm(timm.create_model(name).eval(), 0)
    times = interleaved(
        {
            "fuse": lambda: reparam.fuse(model),
            "unverified": lambda: reparam.fuse(model, verify=False),
            "by hand": lambda: trace_and_reparameterize(model),
        }
    )
    hand = times["by hand"]
    print(
        f"{name}: fuse {times['fuse'] / hand:.2f} × (deepcopy + symbolic_trace + timm),"
        f" without verification {times['unverified'] / hand:.2f} ×   [{hand:.2f} s = 1]"
    )


def chain(length: int) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(length):
        layers += [nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    return randomise_batch_norm(nn.Sequential(*layers).eval(), 0)


def compare_chains(short: int = 300, long: int = 3000) -> None:
    chains = {str(length): chain(length) for length in (short, long)}
    times = interleaved(
        {name: (lambda model=model: reparam.fuse(model)) for name, model in chains.items()}
    )
    ratio = times[str(long)] / times[str(short)]
    print(
        f"chains of conv–BN–ReLU: {long} layers {ratio:.1f} × {short} layers"
        f"   [linear: {long / short:.0f}; {1e3 * times[str(short)] / short:.1f} ms a layer]"
    )


def peak_memory(name: str, verify: bool) -> None:
    """Run in a process of its own, since freed memory stays resident."""
    model = randomise_batch_norm(timm.create_model(name).eval(), 0)
    reparam.fuse(timm.create_model("test_byobnet").eval())  # imports and caches
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    layers = (m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    largest = 8 * max(layer.weight.numel() for layer in layers)
    extra = extra_peak_bytes(lambda: reparam.fuse(model, verify=verify))
    print(
        f"{name}: peak extra memory{'' if verify else ' without verification'}"
        f" {extra / size:.2f} × the model's {size / MEBI:.0f} MiB: the copy and"
        f" {(extra - size) / largest:.1f} × its largest layer in float64 ({largest / MEBI:.0f} MiB)"
    )


def main() -> None:
    if sys.argv[1:2] == ["memory"]:
        peak_memory(sys.argv[2], verify=sys.argv[3] == "verified")
        return
    print(hardware())
    for name in ("repvgg_a0", "repvgg_b3"):
        compare_with_hand_written(name)
    compare_chains()
    sys.stdout.flush()
    command = [sys.executable, "-m", "tests.benchmarks.fuse_time", "memory", "repvgg_b3"]
    for how in ("verified", "unverified"):
        subprocess.run([*command, how], check=True)


if __name__ == "__main__":
    main()
