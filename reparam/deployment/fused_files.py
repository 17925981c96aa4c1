"""A fused model in one file: its weights, and what is needed to fuse another one the same way."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.export import ExportedProgram

from reparam.deployment.atomic_write import write_files
from reparam.deployment.checkpoints import import_safetensors
from reparam.errors import ReparamError
from reparam.fusing import fuse_alike
from reparam.modules import check_module
from reparam.report import FusedRow
from reparam.rules import Rule, Target

ModelT = TypeVar("ModelT", bound=nn.Module)

_KEY = "reparam"
_MOST_VALUES = 2**28
"""Inputs of a file that asks for more are not made."""


def save(fused: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a fused model to a file: its weights, and how it was fused.

    Args:
        fused: What `fuse` or `Plan.apply` returned, or a copy of it.
        path: The file, whose name ends with ``.safetensors``; it is there as a whole or not at all.
            Any reader of safetensors finds the weights in it, under the names of the fused model.

    Raises:
        ReparamError: If the model was not fused, is live, or the file cannot be written.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> import reparam
        >>> def build():
        ...     return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).eval()
        >>> path = Path(tempfile.mkdtemp(), "fused.safetensors")
        >>> fused = reparam.fuse(build())
        >>> reparam.save(fused, path)
        >>> loaded = reparam.load(build(), path)
        >>> x = torch.randn(1, 3, 8, 8)
        >>> torch.equal(loaded(x), fused(x))
        True
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ReparamError(f"{path} must end with .safetensors, which is what is written")
    write_files(path.parent, {path.name: fused_bytes(fused)})


def fused_bytes(fused: nn.Module) -> bytes:
    """What the file of a fused model holds.

    Raises:
        ReparamError: If the model was not fused, is live, or holds what no such file can.
    """
    if isinstance(fused, ExportedProgram):
        raise ReparamError("an exported program is written by torch.export.save")
    check_module(fused)
    report = getattr(fused, "reparam_report", None)
    if report is None:
        raise ReparamError("the model was not fused: give what reparam.fuse returned")
    if report.options["live"]:
        raise ReparamError(
            "a live model has the weights of its original: save its state dict, and fuse again"
        )
    told = {
        "version": 1,
        "class": report.model,
        "options": report.options,
        "operators": {row.place: _outline(fused, row.name) for row in report.fused},
    }
    return state_bytes(fused.state_dict(), {_KEY: json.dumps(told)})


def state_bytes(state: Mapping[str, Any], told: Mapping[str, str]) -> bytes:
    """What a .safetensors file of a state dict holds, and what it tells besides.

    Each of the tensors is there by itself: a loader then needs to know of no sharing.

    Raises:
        ReparamError: If something in the state is no tensor.
    """
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise ReparamError(
            f"{others[0]} in the state of the model is no tensor, and .safetensors holds nothing "
            "else"
        )
    tensors = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in state.items()}
    metadata = {"format": "pt", **told}
    return _in_order(import_safetensors().torch.save(tensors, metadata=metadata))


def _in_order(data: bytes) -> bytes:
    """The same file with its metadata in order, which the library leaves to chance.

    It begins with the length of its header, which is JSON, padded so that the tensors are aligned.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def _outline(fused: nn.Module, name: str) -> str:
    """What an operator says of itself, weights apart."""
    return repr(fused.get_submodule(name))


def load(
    model: ModelT,
    path: str | os.PathLike[str],
    *,
    example_inputs: Any = None,
    rules: Mapping[Target, Rule | None] | None = None,
) -> ModelT:
    """Fuse a model as the one in a file was fused, and give it the weights of that.

    No code of the file is run.

    Args:
        model: A model of the same class and structure in eval mode, with any weights; it is not
            changed.
        path: What `save` wrote.
        example_inputs: What `fuse` was given, where that was more than tensors.
        rules: What `fuse` was given.

    Returns:
        The fused model.

    Raises:
        ReparamError: If there is no such file, it was written by something else, or the model
            becomes another one than the one in the file.

    Examples:
        See `save`.
    """
    path = Path(path)
    told, tensors = _read(path)
    check_module(model)
    if type(model).__name__ != told["class"]:
        raise ReparamError(
            f"{path} holds a {told['class']}, and the model is a {type(model).__name__}"
        )
    try:
        fused: ModelT = fuse_alike(
            model, told["options"], told["operators"].keys(), example_inputs, rules
        )
    except ReparamError as error:
        raise ReparamError(f"{path} cannot be loaded into this model: {error}") from error
    rows: list[FusedRow] = vars(fused)["reparam_report"].fused
    for row in rows:
        own, saved = _outline(fused, row.name), told["operators"][row.place]
        if own != saved:
            raise ReparamError(f"{row.place} is {saved} in {path}, and {own} in this model")
    _check_state(fused.state_dict(), tensors, path)
    fused.load_state_dict(tensors)
    return fused


def _check_state(own: Mapping[str, Any], saved: Mapping[str, Tensor], path: Path) -> None:
    """Raise unless the tensors of a file are those of a model, by name, shape and type."""
    for name in own.keys() | saved.keys():
        if name not in saved or name not in own:
            where = "the model" if name in own else "the file"
            raise ReparamError(f"{path} does not fit the model: {name} is only in {where}")
        for what in ("shape", "dtype"):
            first, second = getattr(saved[name], what), getattr(own[name], what)
            if first != second:
                raise ReparamError(
                    f"{path} does not fit the model: {name} has the {what} {first} in the file and "
                    f"{second} in the model"
                )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a file tells of a fused model, and its tensors."""
    safetensors = import_safetensors()
    if not path.is_file():
        raise ReparamError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise ReparamError(f"{path} is damaged, or no safetensors file: {error}") from error
    if _KEY not in metadata:
        raise ReparamError(f"{path} was not written by reparam.save; read it as any weights")
    try:
        told = json.loads(metadata[_KEY])
        sound = _is_sound(told)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise ReparamError(f"{path} is damaged, or was written by a later version")
    return told, tensors


def _is_sound(told: Any) -> bool:
    """Whether all that a file tells is there, of the right kind, and of a size that can be made."""
    options, operators = told["options"], told["operators"]
    return (
        told["version"] == 1
        and isinstance(told["class"], str)
        and all(isinstance(text, str) for pair in operators.items() for text in pair)
        and isinstance(options["cost"], str)
        and all(isinstance(options[name], bool) for name in ("fold_norms", "rules", "drop_unused"))
        and all(isinstance(path, str) for path in options["keep"])
        and (options["inputs"] is None or all(map(_is_a_tensor, options["inputs"])))
    )


def _is_a_tensor(given: Any) -> bool:
    name, sizes, dtype = given
    fits = all(type(size) is int and size >= 0 for size in sizes) and prod(sizes) < _MOST_VALUES
    return isinstance(name, str) and fits and dtype in _DTYPES


_DTYPES = frozenset("float16 bfloat16 float32 float64 int8 uint8 int16 int32 int64 bool".split())
