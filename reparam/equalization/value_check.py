r"""Check scaled weights: run a graph with the old and the new ones, and compare every value.

With scales s each value v has to become s * v, so that a wrong law shows where it is applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from reparam.analysis import Part
from reparam.capture import operator_name
from reparam.equalization.new_weights import Rescaling
from reparam.modules import fetch, random_numbers_kept
from reparam.report import described
from reparam.verification import REGION_BOUND, ExactRun, random_inputs, relative_error, try_to_run


class ScaleError(Exception):
    """A value is not what its scale says."""


def check_scales(rescaling: Rescaling) -> bool:
    """Run a graph in float64 on a random input, before and after: could all changed layers be run?

    Raises:
        ScaleError: If a value is not its scale times what it was.
    """
    part = rescaling.scaling.part
    changed = rescaling.changed()
    new = {path: tensor for layer in changed for path, tensor in rescaling.tensors(layer).items()}
    for inputs in _inputs(part):
        try:
            with random_numbers_kept(), torch.no_grad():
                reached = _compare(part, inputs, new, rescaling)
        except ScaleError:
            raise
        except Exception:  # another size, perhaps
            continue
        return all(layer.node in reached for layer in changed)
    return not changed


_UNWRITTEN = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
"""Operators whose value is memory that nobody has written to yet: it is another in every run."""


def _inputs(part: Part) -> Iterator[dict[fx.Node, Tensor]]:
    """Random inputs: of the known shapes, for which alone a view may be known, or of usual ones."""
    shapes, dtypes = part.facts.shapes, part.facts.dtypes
    floats = [
        node
        for node in part.trace.graph.find_nodes(op="placeholder")
        if node in shapes and dtypes[node].is_floating_point
    ]
    if not floats:
        yield from random_inputs(part)
        return
    generator = torch.Generator("cpu").manual_seed(0)
    device = next((tensor.device for tensor in part.trace.root.parameters()), None)
    yield {
        node: torch.randn(shapes[node], generator=generator, dtype=torch.float64, device="cpu").to(
            device
        )
        for node in floats
    }


def _compare(
    part: Part, inputs: Mapping[fx.Node, Tensor], new: Mapping[str, Tensor], rescaling: Rescaling
) -> set[fx.Node]:
    """The values that were compared."""
    root, graph = part.trace.root, part.trace.graph
    weights = {id(fetch(root, path)): tensor for path, tensor in new.items()}
    before = ExactRun(part.facts, dict(inputs))
    after = ExactRun(part.facts, {node: x.clone() for node, x in inputs.items()}, weights)
    for node in graph.find_nodes(op="get_attr"):
        parameter = fetch(root, str(node.target))
        if id(parameter) in weights:
            after.values[node] = weights[id(parameter)]
    reached: set[fx.Node] = set()
    last_reader = {operand: node for node in part.facts.order for operand in node.all_input_nodes}
    for node in part.facts.order:
        if try_to_run(node, before, part) and try_to_run(node, after, part):
            if operator_name(node) not in _UNWRITTEN:
                _compare_value(node, before.values[node], after.values[node], rescaling)
            reached.add(node)
        for operand in node.all_input_nodes:
            if last_reader[operand] is node:
                before.values.pop(operand, None)
                after.values.pop(operand, None)
    return reached


def _compare_value(node: fx.Node, before: Any, after: Any, rescaling: Rescaling) -> None:
    """Compare what a node returns; of several results the parts that are read are compared."""
    if not isinstance(before, Tensor) or not before.is_floating_point():
        return
    layout = rescaling.scaling.layouts.get(node)
    trace = rescaling.scaling.part.trace
    expected = before
    if layout is not None:
        scales = rescaling.of(layout.channels).to(before.device)
        if layout.spread:
            scales = scales.repeat_interleave(before.shape[layout.axis] // len(scales))
        expected = before * scales.view(-1, *(1,) * (-layout.axis - 1))
    if expected.shape != after.shape:
        raise ScaleError(f"{described(trace, node)}: with scaled weights its shape differs")
    if bool(expected.isfinite().all()):
        error = _largest_error(after, expected, None if layout is None else layout.axis)
        if not error <= REGION_BOUND:
            raise ScaleError(
                f"{described(trace, node)}: with scaled weights its value differs by {error:.1e}"
            )


def _largest_error(actual: Tensor, expected: Tensor, axis: int | None) -> float:
    """The largest difference of any channel, relative to it: a louder one hides none."""
    if axis is None or not expected.numel():
        return relative_error(actual, expected)
    channel = expected.dim() + axis
    others = [at for at in range(expected.dim()) if at != channel] or [0]
    difference = (actual - expected).abs().amax(others)
    size = expected.abs().amax(others)
    # What cancels within a channel is rounded as its operands are.
    return float((difference / (size + 1e-5 * size.max()).clamp_min(1e-300)).max())
