"""Change a whole model: all of it or nothing, and nothing if it returns something else then."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor, nn
from torch.export import ExportedProgram

from reparam.errors import UntraceableError, warn
from reparam.modules import Inputs, all_or_nothing, copy_apart
from reparam.rewriting import copy_program
from reparam.verification.model_check import DifferenceError, Judge, runnable

Model = nn.Module | ExportedProgram


@dataclass(frozen=True)
class Transaction:
    """One change of a whole model, or of a copy of it.

    Args:
        model: The model.
        inplace: Whether the model itself is changed.
        called: What it is called with to compare it before and after; None if it is not compared.
        notes: How far the outputs are apart is noted here.
        refuse: Takes down that all was left as it was, and why.
    """

    model: Model
    inplace: bool
    called: Inputs | None
    notes: list[str]
    refuse: Callable[[str], None]

    def run(self, change: Callable[[], Model], written: Iterable[Tensor] = ()) -> Model:
        """Make the change, which writes to some tensors of the model itself.

        Returns:
            What was changed; the model as it was, or a copy of that, if it returned something else.
        """
        model, inplace, judge = self.model, self.inplace, None
        if self.called is not None:
            try:
                judge = Judge(runnable(model), self.called, inplace=inplace)
            except UntraceableError as problem:
                self.notes.append(f"the whole model was not compared: {problem.reason}")
        itself = model if inplace and isinstance(model, nn.Module) else None
        try:
            with nullcontext() if itself is None else all_or_nothing(itself, written):
                changed = change()
                if judge is not None:
                    judge.compare(runnable(changed), self.notes)
                return changed
        except DifferenceError as problem:
            warn(f"{problem}; the model was left as it is. Please report it")
            self.refuse(str(problem))
        return model if inplace else copied_model(model)


def called_with(model: Model, inputs: Inputs | None) -> Inputs | None:
    """What a model is called with: example inputs, or those that it was exported with."""
    recorded = model.example_inputs if isinstance(model, ExportedProgram) else None
    return inputs if inputs is not None or recorded is None else Inputs(*recorded)


def copied_model(model: Model) -> Model:
    """An equal model with memory of its own."""
    return copy_program(model) if isinstance(model, ExportedProgram) else copy_apart(model)
