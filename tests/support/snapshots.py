"""All that a user can see of a model, to tell whether it changed."""

from typing import Any

import torch
from torch import nn


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Tensors, flags, names, classes and identities."""
    return {
        "modules": [
            (name, id(m), type(m)) for name, m in model.named_modules(remove_duplicate=False)
        ],
        "training": [m.training for m in model.modules()],
        "gradients": {n: p.requires_grad for n, p in model.named_parameters()},
        "identities": {n: id(t) for n, t in model.state_dict(keep_vars=True).items()},
        "bits": {n: t.clone() for n, t in model.state_dict().items()},
        "attributes": [sorted(vars(m)) for m in model.modules()],
    }


def difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Which part of two snapshots differs, or nothing."""
    bits, bits_after = before["bits"], after["bits"]
    if bits.keys() != bits_after.keys() or not all(
        torch.equal(bits[n], bits_after[n]) for n in bits
    ):
        return "bits"
    changed = [key for key in before if key != "bits" and before[key] != after[key]]
    return ", ".join(changed)
