"""Files of programs: a model recorded for PyTorch or ONNX, run once and compared with the model."""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from reparam.errors import ReparamError
from reparam.modules import Inputs, as_inputs
from reparam.verification import relative_error, runnable

_BOUND = 1e-4
"""Largest difference of a program's outputs, relative to the largest output."""

SUFFIXES = (".pt2", ".onnx")
"""What the names of the files end with."""


@dataclass(frozen=True)
class Program:
    """What the file of a program holds, and what runs that; None where nothing here can."""

    data: bytes
    run: Callable[..., list[Tensor]] | None


def record(
    model: nn.Module | ExportedProgram,
    inputs: Any,
    suffix: str,
    *,
    any_batch: bool = False,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Program:
    """Records a program.

    Args:
        model: The model.
        inputs: What it is recorded with: a tuple of its arguments, or a mapping of named ones.
        suffix: The format, one of `SUFFIXES`.
        any_batch: Whether it takes any number of samples, the first axis of each input.
        input_names: What inputs are called in ONNX.
        output_names: What outputs are called there.

    Returns:
        The program.

    Raises:
        ReparamError: If a package is missing.
    """
    given = as_inputs(model, inputs) or Inputs()
    axes = _batches(model, given) if any_batch else None
    if suffix == ".pt2":
        return _record_for_pytorch(model, given, axes)
    for package in ("onnx", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ReparamError(
                f".onnx files need the package {package}: pip install 'reparam[interop]'"
            ) from error
    with warnings.catch_warnings():
        # torch.export copies its own tree structures
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
        program = torch.onnx.export(
            model,
            () if isinstance(model, ExportedProgram) else given.args,
            kwargs=None if isinstance(model, ExportedProgram) else dict(given.kwargs),
            dynamo=True,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=axes,
            verbose=False,
        )
    if program is None:
        raise ReparamError("torch.onnx.export returned no program")
    data: bytes = program.model_proto.SerializeToString()
    return Program(data, _in_onnxruntime(data))


def program_error(
    model: nn.Module | ExportedProgram, program: Program, cases: Iterable[Any]
) -> float | None:
    """Runs a program on inputs and compares all its outputs with those of its model.

    Returns:
        The largest difference, relative to the largest output; None where nothing can run it.

    Raises:
        ReparamError: If the program returns something else.
    """
    if program.run is None:
        return None
    call = runnable(model)
    worst = 0.0
    for inputs in cases:
        given = as_inputs(model, inputs) or Inputs()
        with torch.no_grad():
            expected, actual = _tensors(given.given_to(call)), given.given_to(program.run)
        same = [tensor.shape for tensor in actual] == [tensor.shape for tensor in expected]
        for error in map(relative_error, actual, expected) if same else [float("inf")]:
            if not error <= _BOUND:
                raise ReparamError(
                    f"the program returns something else than the model, by {error:.1e} of the "
                    "largest output; nothing was written. Please report it"
                )
            worst = max(worst, error)
    return worst


def _batches(model: nn.Module | ExportedProgram, inputs: Inputs) -> Any:
    """Which axes of the inputs are batches, for torch.export."""
    batch = torch.export.Dim("batch")
    axes = inputs.map(lambda value: {0: batch})
    return axes.by_parameter(runnable(model).forward) if axes.kwargs else axes.args


def _record_for_pytorch(model: nn.Module | ExportedProgram, inputs: Inputs, axes: Any) -> Program:
    program = (
        model
        if isinstance(model, ExportedProgram)
        else torch.export.export(model, inputs.args, dict(inputs.kwargs), dynamic_shapes=axes)
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    data = buffer.getvalue()
    read = torch.export.load(io.BytesIO(data)).module(check_guards=program is not model)
    return Program(data, lambda *values, **named: _tensors(read(*values, **named)))


def _in_onnxruntime(data: bytes) -> Callable[..., list[Tensor]] | None:
    """What runs a program of ONNX; None where onnxruntime is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(*values: Tensor, **named: Tensor) -> list[Tensor]:
        others = [name for name in names if name not in named]
        given = {**dict(zip(others, values, strict=True)), **named}
        feed = {name: value.numpy() for name, value in given.items()}
        return [torch.from_numpy(output) for output in session.run(None, feed)]

    return run


def _tensors(outputs: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
