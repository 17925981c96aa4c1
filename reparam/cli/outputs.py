"""What a command writes: a fused model as a program of PyTorch, as ONNX or its weights; a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from reparam.deployment import SUFFIXES as PROGRAMS
from reparam.deployment import fused_bytes, program_error, record, state_bytes, write_files
from reparam.errors import ReparamError
from reparam.fusing import Plan
from reparam.modules import Inputs


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


def needs_inputs(output: Path) -> bool:
    """Whether writing this file means running the model."""
    return output.suffix in PROGRAMS


def write_model(
    model: nn.Module | ExportedProgram,
    output: Path,
    inputs: Inputs | None,
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
    if output.suffix in PROGRAMS:
        given = inputs or Inputs()
        if any_batch:
            given = _two_samples(model, given)
        program = record(model, given, output.suffix, any_batch=any_batch)
        cases = [given, given.map(lambda one: one[:1])] if any_batch else [given]
        data, difference = program.data, program_error(model, program, cases)
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


def _two_samples(model: nn.Module | ExportedProgram, inputs: Inputs) -> Inputs:
    """At least two samples: of one, a program would take that there is always one."""
    if isinstance(model, ExportedProgram):
        raise ReparamError("an exported program keeps its sizes; leave --any-batch out")
    values = inputs.values
    if not all(one.dim() for one in values) or len({len(one) for one in values}) != 1:
        raise ReparamError("--any-batch needs inputs whose first axes are equal")
    return inputs.map(lambda one: torch.cat([one, one]) if len(one) == 1 else one)


def _weights(model: nn.Module | ExportedProgram) -> bytes:
    """The weights of a fused model, and how it was fused; of a program nothing but the weights."""
    return fused_bytes(model) if isinstance(model, nn.Module) else state_bytes(model.state_dict, {})
