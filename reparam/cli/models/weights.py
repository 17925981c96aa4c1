"""Weights from a file, into a model that takes exactly these."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from torch.export import ExportedProgram

from reparam.deployment import read_state_dict
from reparam.errors import ReparamError


def load_weights(model: nn.Module | ExportedProgram, path: Path) -> None:
    """Loads weights; none may be missing, left over or of another shape.

    Raises:
        ReparamError: If the file cannot be read without running code, or its weights do not fit.
    """
    if isinstance(model, ExportedProgram):
        raise ReparamError("an exported program has its weights already; leave --weights out")
    state = read_state_dict(path)
    own = model.state_dict()
    for name in own.keys() & state.keys():
        if own[name].shape != state[name].shape:
            raise ReparamError(
                f"{path} does not fit: {name} has the shape {tuple(state[name].shape)} instead of "
                f"{tuple(own[name].shape)}"
            )
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ReparamError(f"{path} does not fit: {error}") from error
    found = [("missing", missing), ("unexpected", unexpected)]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', …' * (len(names) > 3)}"
        for what, names in found
        if names
    ]
    if problems:
        raise ReparamError(f"{path} does not fit: {'; '.join(problems)}")
