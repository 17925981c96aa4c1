"""How much faster a fused network runs: `python -m tests.benchmarks.latency [timm models]`."""

import sys

import timm
import torch
from timm.utils import reparameterize_model

import reparam
from tests.benchmarks.measuring import hardware, interleaved

NAMES = ("repvgg_a0", "mobileone_s0", "repvit_m0_9", "fastvit_t8", "resnet18")


@torch.inference_mode()
def compare(name: str, size: int = 224) -> None:
    """Prints the latency of the fused and the hand-written form over that of the training form."""
    model = timm.create_model(name).eval()
    image = torch.randn(1, 3, size, size)
    forms = {
        "training": model,
        "fused": reparam.fuse(model),
        "by hand": reparameterize_model(model),
    }
    times = interleaved(
        {form: (lambda network=network: network(image)) for form, network in forms.items()},
        rounds=31,
    )
    training, hand = times["training"], times["by hand"]
    print(
        f"{name}: fused {times['fused'] / training:.2f} × the training form,"
        f" {times['fused'] / hand:.2f} × timm's own   [{1e3 * training:.1f} ms = 1]"
    )


def main() -> None:
    print(f"{hardware()}, float32, batch 1")
    for name in sys.argv[1:] or NAMES:
        compare(name)


if __name__ == "__main__":
    main()
