"""All that a user can see of a model, to tell whether it changed."""

from typing import Any

import torch
from torch import nn


def bits(model: nn.Module) -> dict[str, Any]:
    return {"bits": {n: t.clone() for n, t in model.state_dict().items()}}


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that a user can see of a model: tensors, flags, names, classes and identities."""
    return {
        "modules": [
            (name, id(m), type(m)) for name, m in model.named_modules(remove_duplicate=False)
        ],
        "training": [m.training for m in model.modules()],
        "gradients": {n: p.requires_grad for n, p in model.named_parameters()},
        "identities": {n: id(t) for n, t in model.state_dict(keep_vars=True).items()},
        "attributes": [
            [(name, id(value), _plain(value)) for name, value in sorted(vars(m).items())]
            for m in model.modules()
        ],
        **bits(model),
    }


def _plain(value: Any) -> Any:
    """What can change of an attribute although the object stays the same."""
    return list(value) if isinstance(value, dict | list | set) else None


def difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Which part of two snapshots differs, or nothing."""
    old, new = before["bits"], after["bits"]
    if old.keys() != new.keys() or not all(torch.equal(old[n], new[n]) for n in old):
        return "bits"
    return ", ".join(key for key in before if key != "bits" and before[key] != after[key])
