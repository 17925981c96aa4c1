"""How a model is called: what a user gave as example inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from torch.export import ExportedProgram

from reparam.errors import ReparamError
from reparam.modules.nested_values import copied_values, map_leaves


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call of a module.

    Args:
        args: Those by position.
        kwargs: Those by name.
        remark: What to tell a user if the module does not run on them.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""

    @property
    def values(self) -> tuple[Any, ...]:
        """All arguments in order, those by position first."""
        return (*self.args, *self.kwargs.values())

    def given_to(self, call: Callable[..., Any]) -> Any:
        """What a call with these arguments returns."""
        return call(*self.args, **self.kwargs)

    def map(self, change: Callable[[Any], Any]) -> Inputs:
        """The same with other leaves of the containers that they are."""
        args, kwargs = map_leaves(change, (self.args, dict(self.kwargs)))
        return Inputs(args, kwargs, self.remark)

    def copied(self) -> Inputs:
        """The same with tensors of their own."""
        args, kwargs = copied_values((self.args, dict(self.kwargs)))
        return Inputs(args, kwargs, self.remark)

    def by_parameter(
        self, forward: Callable[..., Any], *, defaults: bool = False
    ) -> dict[str, Any]:
        """What each parameter of a forward is given.

        Raises:
            ReparamError: If a forward does not take these arguments.
        """
        try:
            bound = inspect.signature(forward).bind(*self.args, **self.kwargs)
        except TypeError as error:
            reason = f"example_inputs do not fit the model's forward: {error}"
            raise ReparamError(f"{reason}{self.remark}") from None
        if defaults:
            bound.apply_defaults()
        return dict(bound.arguments)


def as_inputs(model: Any, example_inputs: Any) -> Inputs | None:
    """Example inputs as the arguments of a model's forward; None where there are none.

    A mapping holds keyword arguments if the forward takes them; else it is the one argument.
    """
    if example_inputs is None or isinstance(example_inputs, Inputs):
        return example_inputs
    if isinstance(example_inputs, inspect.BoundArguments):
        return Inputs(example_inputs.args, example_inputs.kwargs)
    if isinstance(example_inputs, tuple | list):
        return Inputs(tuple(example_inputs))
    if not isinstance(example_inputs, Mapping) or not all(
        isinstance(k, str) for k in example_inputs
    ):
        return Inputs((example_inputs,))
    program = isinstance(model, ExportedProgram)
    forward = model.module(check_guards=False).forward if program else model.forward
    named = Inputs((), dict(example_inputs))
    try:
        signature = inspect.signature(forward)
        signature.bind(**named.kwargs)
    except ValueError:  # it is no Python code
        return named
    except TypeError as error:
        remark = _misnamed(signature, named.kwargs) or str(error)
        return Inputs((example_inputs,), {}, f" (taken as names of arguments: {remark})")
    return named


def _misnamed(signature: inspect.Signature, names: Mapping[str, Any]) -> str:
    """Which names no parameter has, and which it may have been."""
    kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY
    known = [name for name, p in signature.parameters.items() if p.kind not in kinds]
    wrong = [name for name in names if name not in known]
    likely = {name: get_close_matches(name, known, 1) for name in wrong}
    texts = (
        f"forward has no {name!r}" + "".join(f", did you mean {near!r}?" for near in likely[name])
        for name in wrong
    )
    return "; ".join(texts)
