"""Change a whole model: all of it or nothing, and nothing if it computes something else then."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from reparam.analysis.parts import Part
from reparam.capture.programs import as_module
from reparam.modules.copying import copy_model
from reparam.modules.state import all_or_nothing
from reparam.rewriting.programs import rebuild
from reparam.rewriting.rewriter import rewrite
from reparam.verification.model_check import DifferenceError, Judge


@dataclass(frozen=True)
class Transaction:
    """One change of a whole model.

    Args:
        verify: Whether to compare the model before and after, if there are inputs.
        inputs: Example inputs.
        notes: How far the outputs are apart is noted here.
        refuse: Takes down that all was left as it was, and why.
    """

    verify: bool
    inputs: tuple[Any, ...] | None
    notes: list[str]
    refuse: Callable[[str], None]

    @property
    def compares(self) -> bool:
        """Whether a module is compared before and after."""
        return self.verify and self.inputs is not None

    def on_model(
        self,
        model: nn.Module,
        target: nn.Module,
        change: Callable[[], None],
        written: Iterable[Tensor] = (),
    ) -> nn.Module:
        """Change a model or a copy of it.

        Args:
            model: The model.
            target: What is changed: the model itself, or a copy.
            change: Changes the target.
            written: Tensors of the target whose values it changes.

        Returns:
            The target; the model as it was, or a copy, if the change was none to make.
        """
        inplace = target is model
        judge = None
        if self.verify and self.inputs is not None:
            judge = Judge(model, self.inputs, inplace=inplace)
        try:
            with all_or_nothing(model, written) if inplace else nullcontext():
                change()
                if judge is not None:
                    judge.compare(target, self.notes)
        except DifferenceError as problem:
            self._refuse(problem)
            return model if inplace else copy_model(model)
        return target

    def on_program(
        self, program: ExportedProgram, part: Part, changed: ExportedProgram
    ) -> ExportedProgram:
        """Take a changed program for one.

        Args:
            program: The program as it was.
            part: What it was read as.
            changed: The changed one.

        Returns:
            The changed one; a copy of the program if the change was none to make.
        """
        called = program.example_inputs if self.inputs is None else (self.inputs, {})
        if self.verify and called is not None:
            try:
                Judge(as_module(program), *called).compare(as_module(changed), self.notes)
            except DifferenceError as problem:
                self._refuse(problem)
                return rebuild(program, rewrite(part.trace, [], part.facts))
        return changed

    def _refuse(self, problem: DifferenceError) -> None:
        warnings.warn(f"{problem}; the model was left as it is. Please report it", stacklevel=6)
        self.refuse(str(problem))
