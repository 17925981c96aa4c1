"""Compare one region with the operator that is to replace it, on a small random input.

Every region is compared in float64 before its weights are rounded, so the bound is near float64
rounding whatever the dtype of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.algebra import Axis, run_operator
from reparam.analysis import Part
from reparam.capture import reached
from reparam.errors import Refusal
from reparam.planning import Absorbed, Region, Share
from reparam.verification.exact_run import ExactRun
from reparam.verification.outside_sizes import OutsideSizes, UnverifiableError

REGION_BOUND = 1e-9
"""Largest relative difference of a region, in float64."""

NOT_FINITE = Refusal("a weight is NaN or infinite")


def compared(region: Region, module: nn.Module, part: Part) -> float | Refusal:
    """Run a region as it was and as one module, still in float64, on the same random input.

    Returns:
        The largest difference, relative to how much its channel varies, or why there is none.
    """
    try:
        error = _error(region, module, part)
    except UnverifiableError as problem:
        return Refusal(f"it could not be verified by itself: {problem}")
    return error if error <= REGION_BOUND or is_finite(module) else NOT_FINITE


def _error(region: Region, module: nn.Module, part: Part) -> float:
    """The error of `compared`.

    Raises:
        UnverifiableError: If the region depends on values from outside, for example sizes.
    """
    replacements = _replacements(region, module)
    generator = torch.Generator("cpu").manual_seed(0)
    problem: Exception | None = None
    like = next(module.parameters(), region.form.like)
    device = torch.device("cpu") if like is None else like.device
    ones = part.facts.ones.get(region.base, 0)
    for shape in _input_shapes(region, part):
        if ones:  # of one position nobody can tell how much a channel varies
            rows = max(shape[0], 4) if ones < len(shape) else 1
            shape = (rows, *shape[1:])[: len(shape) - ones] + (1,) * ones
        x = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(device)
        try:
            with torch.no_grad():
                hands_on = region.norm is not None and region.folded is not None
                weighted = x if hands_on else _weighted(x, region, part)
                expected = _as_it_was(region.value, region.base, weighted.clone(), part)
                expected = _adjusted(expected, region.adjustments, weighted, region, part)
                if region.multiple is not None:
                    expected = expected / region.multiple.times
                actual = _run(region.value, region.base, x, part, replacements)
                actual = _weighted(actual, region, part) if hands_on else actual
        except Exception as error:  # a shape that some view or padding cannot take: try the next
            problem = error
            continue
        if not isinstance(expected, Tensor) or expected.shape != actual.shape:
            return float("inf")
        return _difference(expected, actual, region)
    raise UnverifiableError(str(problem).split("\n", 1)[0])


def is_finite(module: nn.Module) -> bool:
    """Whether no parameter of a module is NaN or infinite."""
    # The sum tells in one pass, but for finite numbers whose sum overflows.
    return all(
        bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
        for tensor in module.parameters()
    )


def _difference(expected: Tensor, actual: Tensor, region: Region) -> float:
    """The largest difference of any channel, relative to how much the channel varies.

    So neither a large constant nor a louder channel hides a wrong kernel.
    """
    if not expected.numel():
        return 0.0
    views = any(link.commuting is not None for link in region.path)
    count = len(region.form.axes or ())
    channel = expected.dim() - count - 1
    others = [axis for axis in range(expected.dim()) if views or axis != channel]
    difference = (expected - actual).abs().amax(others)
    middle = expected.mean(others, keepdim=True)
    variation = (expected - middle).abs().amax(others)
    # Rounding in float64 is relative to the constant, too.
    scale = variation + 1e-5 * expected.abs().amax(others)
    return float((difference / scale.clamp_min(1e-300)).max())


def _input_shapes(region: Region, part: Part) -> Iterator[tuple[int, ...]]:
    """The smallest input that has a border, an interior and a second stride; then larger ones."""
    forms = (link.form for link in region.path if link.form and link.form.axes is not None)
    axes = next(forms, region.form).axes or ()
    channels = region.form.in_channels or 1
    seen = part.facts.shapes.get(region.base)
    if seen is not None and region.path[0].form is None:
        yield tuple(seen)  # a view may be one for this shape alone
        return
    shape = list(seen or ())
    if seen is None:
        rank = part.facts.ranks.get(region.base, max(len(axes) + 2, 2))
        shape = [2 if axes else 4] * rank
        shape[-len(axes) - 1] = channels
    small = _smallest(shape, axes, region.form.axes or ())
    if not _crosses_without_form(region):
        yield small
    first = len(small) - len(axes)
    for size in (8, 32):
        yield (*small[:first], *(max(length, size) for length in small[first:]))
    if seen is not None:
        yield tuple(seen)
    elif any(link.commuting is not None for link in region.path):
        for axis in range(len(small)):  # views moved the channels to the axis that is known
            yield tuple(channels if index == axis else 3 for index in range(len(small)))


def _crosses_without_form(region: Region) -> bool:
    """Whether nobody knows how large an input must be for what is crossed.

    If an operator repeats what a crop left nothing of, torch returns whatever was in memory.
    """
    return any(link.commuting is not None and link.commuting.refusal for link in region.path)


def _smallest(
    shape: Sequence[int], axes: Sequence[Axis], composite: Sequence[Axis]
) -> tuple[int, ...]:
    """A shape whose spatial axes are as small as tells.

    Of two operators in a row, the first has the axes and the new one the composite ones.
    """
    small = list(shape)
    for index, axis in enumerate(composite if len(composite) == len(axes) else axes):
        small[index - len(axes)] = axis.reach + axis.stride + 1 - min(axis.before + axis.after, 0)
    if axes and len(small) > len(axes) + 1:
        small[0] = 1
    elif not axes and len(small) > 1:
        small[0] = max(small[0], 4)  # of one row nobody can tell how much a channel varies
    return tuple(small)


def _adjusted(
    result: Any,
    adjustments: Sequence[Absorbed | Share],
    x: Tensor,
    region: Region,
    part: Part,
) -> Any:
    """What a value was, with the terms and the scales that join it."""
    for joined in adjustments:
        if isinstance(joined, Share):
            result = _scaled(result, joined, region, part)
            continue
        rows = joined.rows
        base, read = region.base, x
        if rows is not None:  # what it reads, and so its value, is another reshape of the same
            base, read = rows.base, x.reshape(-1, *rows.shape)
        term = _as_it_was(joined.term, base, read.clone(), part)
        term = _adjusted(term, joined.adjustments, x, region, part)
        result = result + (term if rows is None else term.reshape(result.shape))
    return result


def _scaled(x: Tensor, share: Share, region: Region, part: Part) -> Any:
    """What a scale makes of one operand of what it scales, the others being zero."""
    link, channels = share.link, share.channels
    axis = x.dim() - len(region.form.axes or ()) - 1

    def scale(operand: Tensor) -> Any:
        if channels is None or share.total is None:
            return _as_it_was(link.value, link.base, operand, part)
        shape = list(operand.shape)
        shape[axis] = share.total
        whole = operand.new_zeros(shape)
        whole.narrow(axis, channels.start, len(channels)).copy_(operand)
        scaled = _as_it_was(link.value, link.base, whole, part)
        return scaled.narrow(axis, channels.start, len(channels))

    return scale(x) if share.shifts else scale(x) - scale(torch.zeros_like(x))


def _weighted(x: Tensor, region: Region, part: Part) -> Tensor:
    """What the base was, if it has left a scale or a weight to the new operator."""
    axis = x.dim() - len(region.plain.axes or ()) - 1
    for scale in reversed(region.gathered):
        whole = x.clone()
        for channels in scale.channels:
            own = x.narrow(axis, channels.start, len(channels)).clone()
            scaled = _as_it_was(scale.link.value, scale.link.base, own, part)
            whole.narrow(axis, channels.start, len(channels)).copy_(scaled)
        x = whole
    if region.folded is None:
        return x
    factor, constant = region.folded.ending.weights.evaluate(x.device)
    shape = (-1, *(1,) * len(region.plain.axes or ()))
    scaled = x * factor.view(shape)
    return scaled if constant is None else scaled + constant.view(shape)


def _as_it_was(value: fx.Node, base: fx.Node, x: Tensor, part: Part) -> Any:
    """What the original graph makes of a value of the base."""
    return _run(value, base, x, part, {})


def _between(
    base: fx.Node,
    value: fx.Node,
    part: Part,
    replacements: Mapping[fx.Node, Any],
    sizes: OutsideSizes,
) -> list[fx.Node]:
    """The nodes to run, in order, from one value to another."""
    facts = part.facts

    def operands(node: fx.Node) -> Iterable[fx.Node]:
        if node is base or node in facts.sources or sizes.tells(node):
            return ()
        if node.op in ("placeholder", "output") or (facts.order[node] < facts.order[base]):
            raise UnverifiableError(f"it depends on {node.name}, which comes from outside")
        return replacements[node][:1] if node in replacements else node.all_input_nodes

    between = reached([value], operands) - {base} - facts.sources.keys()
    return sorted(between, key=facts.order.__getitem__)


def _replacements(region: Region, module: nn.Module) -> Mapping[fx.Node, Any]:
    """What each value of the path becomes: the new operator at the main link, else its base."""

    def operate(x: Tensor) -> Tensor:
        return run_operator(module, x, region.form)

    if not region.collapses:
        return {region.value: (region.base, operate)}
    return {
        link.value: (link.base, operate if link is region.main else lambda x: x)
        for link in region.path
        if link.form is not None
    }


def _run(
    value: fx.Node,
    base: fx.Node,
    x: Tensor,
    part: Part,
    replacements: Mapping[fx.Node, Any],
) -> Any:
    """What the graph makes of a value of the base, with some operators replaced."""
    sizes = OutsideSizes(part, base, value)
    run = ExactRun(part.facts, {base: x})
    for node in _between(base, value, part, replacements, sizes):
        if node in replacements:
            source, function = replacements[node]
            run.values[node] = function(run.values[source])
        elif sizes.tells(node):
            run.values[node] = sizes.value(node, x.shape)
        else:
            run.run(node)
    return run.values[value]
