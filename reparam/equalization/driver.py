"""The public call that equalises the ranges of channels across layers."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.export import ExportedProgram

from reparam.analysis import Part, find_parts
from reparam.equalization.new_weights import Rescaling, rescale, spread_of
from reparam.equalization.scalable_weights import find_weights, shared_memory
from reparam.equalization.scale_flow import follow_scales
from reparam.equalization.value_check import ScaleError, check_scales
from reparam.errors import Refusal, warn
from reparam.modules import (
    ALONE,
    AtWork,
    Inputs,
    as_inputs,
    check_inplace,
    check_model,
    fetch,
    join,
    overwrite,
)
from reparam.report import (
    EqualizationReport,
    EqualizedRow,
    RefusedRow,
    operator_kind,
    place,
    refuse_all,
    untraced_row,
)
from reparam.rules import Rules, load_rules
from reparam.verification import Transaction, called_with, copied_model

ModelT = TypeVar("ModelT", bound=nn.Module | ExportedProgram)

_UNCHECKED = (
    "some layers could not be run by themselves on random inputs to compare their values; with "
    "example_inputs the whole model is compared"
)


def equalize(
    model: ModelT,
    example_inputs: Any = None,
    *,
    inplace: bool = False,
    powers_of_two: bool = False,
    verify: bool = True,
) -> ModelT:
    """Move scales between layers until the ranges of their channels are equal.

    Quantisation with one scale per tensor rounds a channel of small weights beside one of large
    weights to little or nothing. A scale per channel moves from the weights that read a channel to
    those that make it wherever all that lies between lets a positive factor pass, such as a ReLU,
    so that the model computes the same. This is cross-layer equalisation (arXiv 1906.04721, section
    4.1). It works best on a fused model: a batch norm between two layers keeps the scales apart.

    Args:
        model: Any module in eval mode, a graph module or an exported program.
        example_inputs: One tensor, a tuple of the positional arguments of ``forward``, or a mapping
            of its keyword arguments; see `reparam.fuse`. Not needed, but with them shapes are known
            and the whole model is compared.
        inplace: Change the model itself, not a copy of it.
        powers_of_two: Whether to round each scale to a power of two. No weight and no value is then
            rounded anew, so that outputs stay the same bit for bit, but each scale is up to a
            factor of the square root of two from the best one.
        verify: Compare every value of the graph in float64 before a scale is applied.

    Returns:
        The model with other weights, of the kind that was given. What was scaled and what was not
        is its attribute ``reparam_report``.

    Raises:
        ReparamError: If the model is no module, is in training mode, has a lazy module that was
            never run, cannot be copied or not be changed in place, or does not run on the inputs.

    Examples:
        >>> import torch
        >>> import reparam
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
        >>> equal = reparam.equalize(model)
        >>> made, read = equal[0].weight.abs().amax(1), equal[2].weight.abs().amax(0)
        >>> torch.allclose(made, read, rtol=0.01)
        True
        >>> x = torch.randn(3, 4)
        >>> torch.equal(model(x), reparam.equalize(model, powers_of_two=True)(x))
        True
    """
    check_model(model)
    if inplace:
        check_inplace(model)
    inputs = as_inputs(model, example_inputs)
    load_rules()
    with ALONE, AtWork() as work, work:
        equalized: ModelT = _equalized(model, inputs, inplace, powers_of_two, verify)
    return equalized


def _equalized(
    model: Any,
    inputs: Inputs | None,
    inplace: bool,
    powers_of_two: bool,
    verify: bool,
) -> Any:
    """The model with other weights, and with its report."""
    report = EqualizationReport(type(model).__name__)
    parts, untraced = find_parts(model, Rules(), inputs)
    report.refused.extend(map(untraced_row, untraced))
    root = model if isinstance(model, nn.Module) else parts[0].trace.root
    new = _new_weights(parts, root, report, powers_of_two, verify)
    target: Any = model if inplace else copied_model(model)
    state = target.state_dict if isinstance(target, ExportedProgram) else None
    held = {path: fetch(target, path) if state is None else state[path] for path in new}

    def change() -> Any:
        for path, values in new.items():
            overwrite(held[path], values)
        return target

    called = called_with(model, inputs) if verify else None
    transaction = Transaction(model, inplace, called, report.notes, partial(refuse_all, report))
    result = transaction.run(change, held.values())
    vars(result)["reparam_report"] = report  # its class may forbid to set attributes
    return result


def _new_weights(
    parts: list[Part],
    model: nn.Module,
    report: EqualizationReport,
    powers_of_two: bool,
    verify: bool,
) -> dict[str, Tensor]:
    """The new parameters by path, in their own type."""
    shared = shared_memory(model)
    new: dict[str, Tensor] = {}
    for part in parts:
        scaling = follow_scales(part, find_weights(part, shared), model)
        rescaling = rescale(scaling, powers_of_two=powers_of_two)
        if verify and rescaling.changed():
            try:
                if not check_scales(rescaling) and _UNCHECKED not in report.notes:
                    report.notes.append(_UNCHECKED)
            except ScaleError as problem:
                reason = f"verification failed: {problem}"
                warn(f"{reason}; it was left alone. Please report it")
                for layer in scaling.layers.values():
                    scaling.groups.fix((*layer.inputs, *layer.outputs), Refusal(reason))
                rescaling = rescale(scaling, powers_of_two=powers_of_two)
        _describe(rescaling, report)
        for layer in rescaling.changed():
            for path, exact in rescaling.tensors(layer).items():
                old = fetch(part.trace.root, path)
                new[join(part.trace.path, path)] = exact.to(old.dtype)
    return new


def _describe(rescaling: Rescaling, report: EqualizationReport) -> None:
    """Write down what happens to the layers of a part, in the order in which they run."""
    scaling = rescaling.scaling
    trace, groups = scaling.part.trace, scaling.groups
    changed = set(rescaling.changed())
    for layer in scaling.layers.values():
        where, kind = place(trace, layer.node), operator_kind(trace, layer.node)
        if layer in changed:
            scales = rescaling.of(layer.outputs)
            channels = int((scales != 1).sum()), len(scales)
            spread = spread_of(layer, rescaling)
            report.equalized.append(EqualizedRow(where, kind, channels, spread))
        reasons = [groups.fixed.get(groups.find(channel)) for channel in layer.outputs]
        if reasons and reasons[0] is not None and None not in reasons:
            report.refused.append(RefusedRow(where, kind, reasons[0].reason))
    for node, reason in scaling.refused.items():
        row = RefusedRow(place(trace, node), operator_kind(trace, node), reason.reason)
        report.refused.append(row)
