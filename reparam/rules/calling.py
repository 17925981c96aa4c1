"""Call a rule, and say what is wrong with it where its fault is plain."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from reparam.algebra import (
    AffineConv,
    AffineStack,
    AffineSum,
    Recording,
    leaves,
    origin_of,
    under_condition,
    unseen,
)
from reparam.errors import Refusal, ReparamError
from reparam.rules.registry import Rule, describe_rule, describe_target, is_built_in
from reparam.rules.steps import Selecting, Several, Stacked, Step

_EXPECTED = "a rule must return a form, such as x.scale(...), or a reparam.Refusal with a reason"

_OTHER_NAMES = {
    "self": "input",
    "x": "input",
    "a": "input",
    "x2": "other",
    "axis": "dim",
    "keepdims": "keepdim",
    "tensor": "input",
    "split_size_or_sections": "split_size",
}
"""Other names for arguments: those of ATen and NumPy, and of ``torch.split``."""


class RuleError(ReparamError):
    """A rule raised, so that nothing is known of its operator."""


def call_rule(
    rule: Rule,
    target: Any,
    where: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Step | Selecting | None:
    """What a rule says of one call of its operator, which is somewhere in a model.

    A module is the first of its arguments if the rule is one of modules.

    Returns:
        A form, or another step, or a Refusal; None if the call is none that the rule is about.

    Raises:
        RuleError: If the rule raises.
        ReparamError: If the rule returns something else.
    """
    name = f"the rule {describe_rule(rule)} of {describe_target(target)}, {where},"
    kwargs = in_names_of(rule, kwargs)
    problem = _misfit(rule, args, kwargs)
    if problem is not None:
        return problem
    try:
        step, asked = _answer(rule, args, kwargs)
        if asked:
            step = _each_form(step, partial(under_condition, asked=asked))
        if is_built_in(rule):
            return step if isinstance(step, Step | Selecting) else None
        _check_weights(step)
        if not _is_seen(step, rule, args, kwargs):
            step = _each_form(step, unseen)
    except Exception as error:
        refusal = getattr(error, "obj", None) if isinstance(error, AttributeError) else None
        if isinstance(refusal, Refusal):
            return refusal  # x.pad(...).convolve(...), where the first law refused
        raise RuleError(f"{name} raised {type(error).__name__}: {error}") from error
    if step is NotImplemented:
        return None
    if not isinstance(step, Step | Selecting):
        raise ReparamError(f"{name} returned {_found(step)}; {_EXPECTED}")
    given = {form.base for form in _forms([*args, *kwargs.values()])}
    if not given.issuperset(form.base for form in _forms(step)):
        raise ReparamError(
            f"{name} returned a form over nothing that flows in; build it from the forms that the "
            "rule is called with"
        )
    return step


class _MakingFloat64(TorchFunctionMode):
    """Tensors that a rule makes are as exact as the parameters that it is given."""

    names = "arange as_tensor empty eye full linspace ones scalar_tensor tensor zeros".split()
    makers = frozenset(map(torch.__dict__.get, names))

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in self.makers and result.is_floating_point() and kwargs.get("dtype") is None:
            return func(*args, **{**kwargs, "dtype": torch.float64})
        return result


def _each_form(step: Any, become: Callable[[AffineConv], AffineConv]) -> Any:
    """What a rule returned, with another form for each."""

    def each(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_each_form(value, become) for value in values)

    if isinstance(step, AffineConv):
        return become(step)
    if isinstance(step, AffineSum | AffineStack):
        return replace(step, terms=each(step.terms))
    if isinstance(step, Several):
        return Several(each(step.results))
    return replace(step, branches=each(step.branches)) if isinstance(step, Stacked) else step


def _tensors(arguments: Any) -> set[int]:
    """Identities of the tensors that a rule is given, those that modules hold included."""
    given = tree_leaves(arguments)
    for module in [value for value in given if isinstance(value, nn.Module)]:
        given += tree_leaves([vars(part) for part in module.modules()])
    return {id(leaf) for tensor in given for leaf in leaves(origin_of(tensor))}


def _is_seen(step: Any, rule: Rule, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether it is known how all in the weights that a rule returned was computed."""
    given = _tensors((args, kwargs))

    def unknown(said: Any) -> set[int]:
        found = (leaf for form in _forms(said) for leaf in form.weights.leaves())
        return {id(leaf) for leaf in found if isinstance(leaf, Tensor)}.difference(given)

    # What was there before a rule is called is the same tensor each time.
    made = unknown(step)
    return not made or made == unknown(_answer(rule, args, kwargs)[0])


def _answer(
    rule: Rule, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Any, list[tuple[Any, Any]]]:
    """What a rule returns, and what it asked about the numbers of tensors."""
    with Recording() as recording, nullcontext() if is_built_in(rule) else _MakingFloat64():
        return rule(*args, **kwargs), recording.asked


def in_names_of(rule: Rule, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Keyword arguments under the names that a rule has for them."""
    signature = None if kwargs.keys().isdisjoint(_OTHER_NAMES) else _signature(rule)
    if signature is None:
        return kwargs
    own = signature.parameters
    return {
        name if name in own else _OTHER_NAMES.get(name, name): value
        for name, value in kwargs.items()
    }


def _misfit(rule: Rule, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Refusal | None:
    """Why a rule cannot be called like its operator."""
    signature = _signature(rule)
    if signature is None:
        return None
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        called = f"{describe_rule(rule)}{signature}: {error}"
        return Refusal(f"its rule does not know how it is called ({called})")
    return None


@cache
def _signature(rule: Rule) -> inspect.Signature | None:
    try:
        return inspect.signature(rule)
    except ValueError:  # it is not written in Python
        return None


def _found(step: Any) -> str:
    if step is None:
        return "None (is a return missing?)"
    if isinstance(step, Tensor):
        return f"a Tensor of shape {tuple(step.shape)}, not what happens to x"
    if isinstance(step, nn.Module):
        return f"a module, {type(step).__name__}, not what happens to x"
    return f"{step!r} ({type(step).__name__})"


def _forms(value: Any) -> Iterator[AffineConv]:
    """The forms in what a rule is called with, or returns."""
    if isinstance(value, AffineConv):
        yield value
    elif isinstance(value, AffineSum | AffineStack):
        yield from value.terms
    elif isinstance(value, Stacked):
        yield from value.branches
    elif isinstance(value, list | tuple | Several):
        for entry in value.results if isinstance(value, Several) else value:
            yield from _forms(entry)


def _check_weights(step: Any) -> None:
    """Compute the weights of a form once, while it is known whose mistake it is if that fails."""
    for form in _forms(step):
        kernel, bias = form.weights.evaluate()
        if bias is not None and bias.shape != kernel.shape[:1]:
            raise ValueError(
                f"a bias of shape {tuple(bias.shape)} for {kernel.shape[0]} output channels"
            )
