"""Checkpoint files: the weights in them, whatever is around, and no code of theirs run."""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from reparam.errors import ReparamError

_ENTRIES = ("state_dict", "model", "model_state")
"""Where weights are found in a file that holds more; averaged ones only if they are asked for."""

_PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel, averaging and torch.compile put before every name."""


def read_state_dict(path: str | os.PathLike[str], *, entry: str | None = None) -> dict[str, Tensor]:
    """Reads the weights of a model from a file.

    Args:
        path: A `.safetensors` file, or one that `torch.save` wrote.
        entry: Under which key the weights are, in a file that holds more. By default the file
            itself, or its "state_dict", "model" or "model_state"; averaged weights, say
            "model_ema" or "state_dict_ema", only if named.

    Returns:
        The weights by their names, on the CPU, without the prefixes of DistributedDataParallel and
        torch.compile.

    Raises:
        ReparamError: If there is no such file, it is damaged, holds no weights, or cannot be read
            without running code that it brings.
    """
    path = Path(path)
    if path.is_dir():
        raise ReparamError(f"{path} is a folder; give the checkpoint file in it")
    if not path.exists():
        raise ReparamError(f"there is no file {path}")
    if path.stat().st_size == 0:
        raise ReparamError(f"{path} is empty; copy or download it again")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _unpickle(path)
    return _without_prefixes(_choose(content, path, entry))


def weights_writer(name: str, state: Mapping[str, Tensor]) -> Callable[[Path], None]:
    """Returns what writes weights to a file, in the format that a name ends with.

    Raises:
        ReparamError: If that is no known format.
    """
    suffix = Path(name).suffix
    if suffix not in (".safetensors", ".pth", ".pt", ".tar"):
        raise ReparamError(f"no format has the suffix of {name!r}; use .safetensors or .pth")
    save = _save_safetensors if suffix == ".safetensors" else save_pickle
    return partial(save, {name: t.detach().cpu().contiguous() for name, t in state.items()})


def _save_safetensors(state: dict[str, Tensor], path: Path) -> None:
    safetensors = import_safetensors()
    try:
        safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error  # a full disk, say


def save_pickle(content: Mapping[str, Any], path: Path) -> None:
    """Writes what `torch.save` can.

    Raises:
        OSError: If the disk is full, say.
    """
    try:
        torch.save(content, path)
    except RuntimeError as error:
        raise OSError(str(error)) from error


def import_safetensors() -> ModuleType:
    """The package that reads and writes .safetensors files.

    Raises:
        ReparamError: If it is not installed.
    """
    try:
        import safetensors.torch
    except ImportError as error:
        raise ReparamError(
            ".safetensors files need the package safetensors: pip install 'reparam[cli]'"
        ) from error
    return safetensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    safetensors = import_safetensors()
    try:
        state: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ReparamError(f"{path} is damaged, or no safetensors file: {error}") from error
    return state


def _unpickle(path: Path) -> Any:
    try:
        # timm's training script saves its arguments beside the weights, and they run no code.
        with torch.serialization.safe_globals([Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    # The bytes of a damaged pickle are instructions, and can fail in any way.
    except Exception as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if foreign is None:
            raise ReparamError(
                f"{path} is damaged, or no checkpoint; copy or download it again"
            ) from error
        raise ReparamError(
            f"{path} holds a {foreign[1]} besides the weights, which only code of the file could "
            "rebuild, and no such code is run; where you trust the file, load it with "
            "weights_only=False and save its state dict alone"
        ) from error


def _choose(content: Any, path: Path, entry: str | None) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise ReparamError(f"{path} holds a {type(content).__name__} instead of weights by name")
    if entry is not None:
        if entry not in content:
            raise ReparamError(f"{path} has no entry {entry!r}; it has {_some(content)}")
        chosen = content[entry]
    elif _are_weights(content):
        chosen = content
    else:
        chosen = next((content[name] for name in _ENTRIES if name in content), None)
    if not _are_weights(chosen):
        candidates = [name for name, value in content.items() if _are_weights(value)]
        advice = f"; choose with entry={candidates[0]!r}" if candidates else ""
        raise ReparamError(
            f"{path} has no weights by name {f'as {entry!r}' if entry else 'in a usual place'}; "
            f"it has {_some(content)}{advice}"
        )
    return dict(chosen)


def _are_weights(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(t, Tensor) for name, t in value.items())
    )


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state.pop("n_averaged", None)  # the count of torch.optim.swa_utils.AveragedModel
    for prefix in _PREFIXES * 2:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _some(content: Mapping[Any, Any]) -> str:
    names = [repr(name) for name in content]
    return ", ".join(names[:6] + ["…"] * (len(names) > 6)) or "nothing"
