"""Compare a rule with what its operator computes, as ``gradcheck`` does for gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reparam.algebra import AffineConv, lower, run_operator, unsupported
from reparam.errors import Refusal, ReparamError
from reparam.fusing import fuse
from reparam.modules import ALONE, AtWork, undisturbed
from reparam.rules import (
    Rule,
    Rules,
    Selecting,
    Step,
    Target,
    as_listed,
    describe_rule,
    describe_target,
    load_rules,
)
from reparam.testing.differences import ChannelAxisError, Map, difference
from reparam.testing.specimen import (
    Specimen,
    axes_after_channels,
    draw,
    input_of,
    larger,
    neighbours,
)


class RuleCheckError(ReparamError):
    """A rule does not say what its operator computes."""


@dataclass(frozen=True)
class RuleCheck:
    """What `rulecheck` compared.

    Args:
        rule: The rule, and what it is of.
        compared: How often a form was compared with forward, by itself or next to others.
        error: The largest difference, relative to the largest value.
        refusals: Why there was nothing to compare: the reasons of the rule where it gave no form.
    """

    rule: str
    compared: int
    error: float
    refusals: tuple[str, ...]

    def __str__(self) -> str:
        first = f"{self.rule}: {self.compared} comparisons, largest difference {self.error:.0e}"
        return "\n".join([first, *(f"  refused: {reason}" for reason in self.refusals)])


def rulecheck(
    target: nn.Module | Callable[..., Any],
    input_shape: Sequence[int],
    *arguments: Any,
    rules: Mapping[Target, Rule | None] | None = None,
    draws: int = 2,
    seed: int = 0,
) -> RuleCheck:
    """Compare a rule with what its operator computes, in float64.

    That is done for the operator by itself and for networks of it and a convolution, or a linear
    layer, before it, after it or both: with bias, with stride, padded and not. Each is fused and
    compared with what it was, at the given size and at a larger odd one, with the weights as they
    are and with random ones. Where the rule or a law refuses there is nothing to compare: that is
    fine. A module that runs differently in other configurations has to be checked in each of them.

    Args:
        target: A module, which is not changed, and which is checked in eval mode; or a function or
            an operator that has a rule.
        input_shape: The shape of its first input.
        *arguments: What it is called with besides; tensors among them are constants.
        rules: Rules for this call only, as in `reparam.plan`.
        draws: How many times all parameters and floating-point buffers are drawn anew. Buffers
            without negative values, such as variances, stay positive.
        seed: Equal seeds give equal numbers. Nobody else's random numbers are touched.

    Shape:
        input_shape ``(N, C, *spatial)`` or ``(*, C)``, wherever the channels of the rule's form
        are. If it has none, the channels of three axes may be the second or the last: they are
        told apart by their size.

    Returns:
        What was compared; print it.

    Raises:
        RuleCheckError: If they differ: says whether it is the scale axis, the kernel, the constant
            or the border, by how much and where.
        ReparamError: If there is no rule, the rule raises or returns no form, or forward does not
            run on such an input.

    Examples:
        >>> import torch
        >>> import reparam
        >>> class Offset(torch.nn.Module):
        ...     def __init__(self, channels):
        ...         super().__init__()
        ...         self.offset = torch.nn.Parameter(torch.rand(channels))
        ...     def forward(self, x):
        ...         return x + self.offset[:, None, None]
        >>> @reparam.register_rule(Offset)
        ... def offset(module, x):
        ...     return x.shift(module.offset)
        >>> reparam.testing.rulecheck(Offset(8), (2, 8, 6, 7)).error < 1e-12
        True
    """
    load_rules()
    return _checked(target, input_shape, arguments, rules, draws, seed)


def _checked(
    target: Any,
    input_shape: Sequence[int],
    arguments: tuple[Any, ...],
    rules: Mapping[Target, Rule | None] | None,
    draws: int,
    seed: int,
) -> RuleCheck:
    if inspect.isclass(target):
        raise ReparamError(f"rulecheck needs a module, not the class {target.__name__}: build one")
    shape = tuple(input_shape)
    if not all(isinstance(size, int) for size in shape):
        raise ReparamError(f"input_shape must be sizes such as (2, 8, 6, 7), found {input_shape!r}")
    listed = type(target) if isinstance(target, nn.Module) else as_listed(target)
    rule = Rules(rules).find(listed)
    if rule is None:
        raise ReparamError(f"{describe_target(listed)} has no rule; register one, or pass rules")
    name = f"{describe_rule(rule)} of {describe_target(listed)}"
    errors: list[float] = []
    refusals: dict[str, None] = {}
    for cases in (_by_itself, _between_others):
        specimen = Specimen.of(target, listed, arguments)
        generator = torch.Generator("cpu").manual_seed(seed)
        with ALONE, AtWork() as work, work, undisturbed(specimen.module):
            for drawn in range(draws + 1):
                if drawn:
                    specimen.draw(generator)
                step = specimen.ask(rule, len(shape))
                if step is None or isinstance(step, Refusal):
                    refusals[str(step or "it is not about such a call")] = None
                    continue
                weights = "random weights" if drawn else "the weights as they are"
                for case in cases(_Setting(specimen, step, shape, generator, rules)):
                    errors.append(_error(case, name, weights))
    if not errors and not refusals:
        refusals["no network that was tried fuses with it"] = None
    return RuleCheck(name, len(errors), max(errors, default=0.0), tuple(refusals))


def _error(case: _Case, rule: str, weights: str) -> float:
    """The rounding error of a form; raises a RuleCheckError if it is more than that."""
    error, text = difference(case.forward, case.formal, case.x, case.count)
    if text:
        raise RuleCheckError(
            f"the rule {rule} does not say what forward computes. What differs is {text}. That was "
            f"found {case.where}, with an input of shape {tuple(case.x.shape)} and {weights}"
        )
    return error


@dataclass(frozen=True)
class _Case:
    """A network of the operator and others, what it is by the rule, and its input.

    So many axes come after the channel axis of its result.
    """

    where: str
    forward: Map
    formal: Map
    x: Tensor
    count: int


@dataclass(frozen=True)
class _Setting:
    """An operator with one draw of its weights, what its rule says of it, and the user's shape."""

    specimen: Specimen
    step: Step | Selecting
    shape: tuple[int, ...]
    generator: torch.Generator
    rules: Mapping[Target, Rule | None] | None

    @property
    def count(self) -> int:
        """How many axes come after the channel axis."""
        return axes_after_channels(self.step, self.shape)

    def random(self, shape: Sequence[int]) -> Tensor:
        values = torch.randn(tuple(shape), generator=self.generator, dtype=torch.float64)
        return values.to(self.specimen.device)

    def runs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs of the given and of a larger size, and what forward returns for them."""
        network = self.specimen.between(None, None)
        for shape in (self.shape, larger(self.step, self.count, self.shape)):
            x = self.random(shape)
            try:
                value = network(x.clone())
            except Exception as error:
                if shape is not self.shape:
                    return  # it is for one size
                raise ReparamError(
                    f"forward does not run in float64 on an input of shape {shape} "
                    f"({type(error).__name__}: {error})"
                ) from error
            if not isinstance(value, Tensor):
                raise ReparamError(f"forward returns a {type(value).__name__}, not a tensor")
            yield x, value


def _by_itself(setting: _Setting) -> Iterator[_Case]:
    """The operator and its form."""
    step, count = setting.step, setting.count
    if isinstance(step, AffineConv):
        network = setting.specimen.between(None, None)
        for x, _ in setting.runs():
            formal = _as_map(step, count, x.shape)
            if formal is not None:
                yield _Case("by itself", network, formal, x, count)


def _between_others(setting: _Setting) -> Iterator[_Case]:
    """Networks of the operator and its neighbours, and what they are fused to."""
    for x, value in setting.runs():
        for before, after in neighbours(setting.step, setting.count, x, value):
            where = []
            for word, part in (("after", before), ("before", after)):
                if part is not None:
                    draw(part, setting.generator)
                    where.append(f"{word} {part}")
            network = setting.specimen.between(before, after)
            inputs = setting.random(input_of(before, setting.count, x.shape))
            try:
                rank = network(inputs.clone()).dim()
            except RuntimeError:  # the window of a neighbour is too large
                continue
            fused = fuse(network, inputs.clone(), rules=setting.rules, verify=False)
            report: Any = fused.reparam_report
            if report.fused:
                count = setting.count if isinstance(setting.step, AffineConv) else max(rank - 2, 0)
                yield _Case(" and ".join(where), network, fused, inputs, count)


def _as_map(form: AffineConv, count: int, shape: Sequence[int]) -> Map | None:
    """What a form computes; None if no module of torch does."""
    channels = form.in_channels or shape[-count - 1]
    form = form.with_axes(max(count, 1)) if form.pointwise else form
    form = form.with_channels(channels)
    if unsupported(form) is not None:
        return None
    module = lower(form, *form.weights.evaluate())

    def compute(x: Tensor) -> Tensor:
        if x.shape[-count - 1] != channels:
            raise ChannelAxisError(
                f"the scale axis (the rule's form has {channels} channels along axis {-count - 1}, "
                f"where the input has {x.shape[-count - 1]})"
            )
        spatial = tuple(x.shape[x.dim() - count :])
        result = run_operator(module, x.reshape(-1, channels, *(spatial or (1,))), form)
        ends = result.shape[1:] if spatial else result.shape[1:2]
        return result.reshape(*x.shape[: x.dim() - count - 1], *ends)

    return compute
