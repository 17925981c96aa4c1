"""What a command writes: a fused model as a program of PyTorch, as ONNX or its weights; a page."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from reparam.atomic_write import write_files
from reparam.driver import Plan
from reparam.errors import ReparamError
from reparam.verification import relative_error

_BOUND = 1e-4
"""Largest difference of a program's outputs, relative to the largest output."""

_SUFFIXES = (".pt2", ".onnx", ".safetensors")
_Axes = tuple[dict[int, Any], ...]
_Run = Callable[..., Sequence[Any]]


@dataclass(frozen=True)
class Written:
    """A file that was written.

    Args:
        path: Where it is.
        difference: By how much the program in it, run once, differs from the fused model, relative
            to the largest output; None where there is no program, or nothing to run it with.
    """

    path: Path
    difference: float | None


def read_output(text: str) -> Path:
    """Reads the name of a file, which says its format.

    Raises:
        ValueError: If no format is called like that.
    """
    path = Path(text)
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"no format has the suffix of {text!r}; use {', '.join(_SUFFIXES)}")
    return path


def needs_inputs(output: Path) -> bool:
    """Whether writing this file means running the model."""
    return output.suffix in _PROGRAMS


def write_model(
    model: nn.Module | ExportedProgram,
    output: Path,
    inputs: tuple[Tensor, ...] | None,
    *,
    any_batch: bool = False,
) -> Written:
    """Writes a fused model in the format that the name of the file ends with.

    Args:
        model: The model.
        output: The file; it is there as a whole or not at all.
        inputs: What a program is recorded with and run on.
        any_batch: Whether a program takes any number of samples, the first axis of each input.

    Returns:
        The file, and by how much the program in it differs from the model.

    Raises:
        ReparamError: If the number of samples is fixed already, a package is missing, the program
            returns something else than the model, or the file cannot be written.
    """
    difference = None
    if output.suffix in _PROGRAMS:
        given = inputs or ()
        if any_batch:
            given = _two_samples(model, given)
        data, run = _PROGRAMS[output.suffix](model, given, _axes(given) if any_batch else None)
        if run is not None:
            cases = [given, tuple(one[:1] for one in given)] if any_batch else [given]
            difference = max(_check(model, run, case) for case in cases)
    else:
        data = _weights(model)
    write_files(output.parent, {output.name: data})
    return Written(output, difference)


def write_page(plan: Plan, path: Path) -> None:
    """Writes a plan as a page.

    Args:
        plan: The plan.
        path: The file; it is there as a whole or not at all.

    Raises:
        ReparamError: If a package is missing, or the file cannot be written.
    """
    write_files(path.parent, {path.name: plan.to_html})


def _two_samples(
    model: nn.Module | ExportedProgram, inputs: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """At least two samples: of one, a program would take that there is always one."""
    if isinstance(model, ExportedProgram):
        raise ReparamError("an exported program keeps its sizes; leave --any-batch out")
    if not all(one.dim() for one in inputs) or len({len(one) for one in inputs}) != 1:
        raise ReparamError("--any-batch needs inputs whose first axes are equal")
    return tuple(torch.cat([one, one]) if len(one) == 1 else one for one in inputs)


def _axes(inputs: tuple[Tensor, ...]) -> _Axes:
    batch = torch.export.Dim("batch")
    return tuple({0: batch} for _ in inputs)


def _weights(model: nn.Module | ExportedProgram) -> bytes:
    """The state dict, each of its tensors by itself: a loader then needs to know of no sharing."""
    safetensors = _import("safetensors.torch", "safetensors", ".safetensors files need")
    state = model.state_dict() if isinstance(model, nn.Module) else model.state_dict
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise ReparamError(
            f"{others[0]} in the state of the model is no tensor, and .safetensors holds nothing "
            "else; choose .pt2"
        )
    tensors = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()
    }
    data: bytes = safetensors.save(tensors, metadata={"format": "pt"})
    return data


def _to_exported_program(
    model: nn.Module | ExportedProgram, inputs: tuple[Tensor, ...], axes: _Axes | None
) -> tuple[bytes, _Run]:
    program = (
        model
        if isinstance(model, ExportedProgram)
        else torch.export.export(model, inputs, dynamic_shapes=axes)
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    data = buffer.getvalue()
    read = torch.export.load(io.BytesIO(data)).module(check_guards=False)
    return data, lambda *values: tree_leaves(read(*values))


def _to_onnx(
    model: nn.Module | ExportedProgram, inputs: tuple[Tensor, ...], axes: _Axes | None
) -> tuple[bytes, _Run | None]:
    for package in ("onnx", "onnxscript"):
        _import(package, package, ".onnx files need")
    given = () if isinstance(model, ExportedProgram) else inputs
    program = torch.onnx.export(model, given, dynamo=True, dynamic_shapes=axes, verbose=False)
    if program is None:
        raise ReparamError("torch.onnx.export returned no program")
    data: bytes = program.model_proto.SerializeToString()
    try:
        import onnxruntime
    except ImportError:
        return data, None
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(*values: Tensor) -> list[Tensor]:
        feed = {name: value.numpy() for name, value in zip(names, values, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, feed)]

    return data, run


_PROGRAMS: dict[str, Callable[..., tuple[bytes, _Run | None]]] = {
    ".onnx": _to_onnx,
    ".pt2": _to_exported_program,
}


def _check(model: nn.Module | ExportedProgram, run: _Run, inputs: tuple[Tensor, ...]) -> float:
    """Runs the program once and compares all outputs with those of the model."""
    call = model if isinstance(model, nn.Module) else model.module(check_guards=False)
    with torch.no_grad():
        expected = [one for one in tree_leaves(call(*inputs)) if isinstance(one, Tensor)]
        found = [one for one in run(*inputs) if isinstance(one, Tensor)]
    same = [one.shape for one in found] == [one.shape for one in expected]
    worst = max(map(relative_error, found, expected), default=0.0) if same else float("inf")
    if not worst <= _BOUND:
        raise ReparamError(
            f"the program returns something else than the fused model, by {worst:.1e} of the "
            "largest output; nothing was written. Please report it"
        )
    return worst


def _import(module: str, package: str, purpose: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ReparamError(f"{purpose} the package {package}: pip install {package}") from error
