"""The state of a run in a file, from which training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from reparam import ReparamError
from reparam.deployment import save_pickle, write_files

_FORMAT = "repvgg training state, version 1"


def write_snapshot(path: Path, contents: Mapping[str, Any]) -> None:
    """Writes tensors, numbers and text; what was in the file stays until all is written.

    Raises:
        ReparamError: If the file cannot be written.
    """
    write_files(path.parent, {path.name: partial(save_pickle, {"format": _FORMAT, **contents})})


def read_snapshot(path: Path) -> dict[str, Any] | None:
    """Reads what `write_snapshot` wrote; `None` if there is no file.

    Raises:
        ReparamError: If the file is damaged or of another kind.
    """
    if not path.exists():
        return None
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise whatever the reader stumbles over
        raise ReparamError(
            f"cannot read {path}, which is damaged or not a training state: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}; "
            "restore it, or train from the start with --restart"
        ) from error
    if not isinstance(contents, dict) or contents.get("format") != _FORMAT:
        raise ReparamError(
            f"{path} is not a training state of this version; "
            "choose another folder, or train from the start with --restart"
        )
    return contents
