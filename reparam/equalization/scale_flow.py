r"""Follow positive scales per channel through a graph.

A layer W from scaled channels to scaled channels computes the scaled value with other weights::

    s * (W x + b)  =  (s * W / t) (t * x) + s * b

What lies between layers has to let a scale pass: an operator with f(s * x) = s * f(x), a sum whose
operands share their scale, channels side by side. Where it does not, the scale is 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from reparam.algebra import AffineConv, AffineStack, AffineSum
from reparam.analysis import Part, known_channels
from reparam.capture import Call, Trace, Trait, may_run_otherwise, nodes_in, traits
from reparam.equalization.channel_layouts import Channels, Layout, ScaleGroups, flattens
from reparam.equalization.homogeneous import homogeneous
from reparam.equalization.scalable_weights import Weights
from reparam.errors import Refusal
from reparam.modules import fetch
from reparam.report import described
from reparam.rules import Commuting, Several


@dataclass(eq=False)
class Layer:
    """A layer that can take scales.

    Args:
        node: The operator; the first one if it runs several times.
        weights: Its weights.
        inputs: The channels that it reads, one entry per column of its weight.
        outputs: The channels that it makes.
    """

    node: fx.Node
    weights: Weights
    inputs: Channels
    outputs: Channels


@dataclass(eq=False)
class Scaling:
    """Where scales may be in the graph of a part.

    Args:
        part: The part.
        groups: The channels.
        layouts: The channels of each value that may be scaled.
        layers: The layers that can take scales, in order, by the identity of their weight.
        refused: Why others cannot.
    """

    part: Part
    groups: ScaleGroups = field(default_factory=ScaleGroups)
    layouts: dict[Any, Layout] = field(default_factory=dict)
    layers: dict[int, Layer] = field(default_factory=dict)
    refused: dict[fx.Node, Refusal] = field(default_factory=dict)

    def fix(self, nodes: Iterable[Any], reason: Refusal) -> None:
        """Let values keep the scale 1."""
        for node in nodes:
            if node in self.layouts:
                self.groups.fix(self.layouts[node].channels, reason)


def follow_scales(
    part: Part, weights: Mapping[fx.Node, Weights | Refusal], model: nn.Module
) -> Scaling:
    """Find the channels of a part of a model that may be scaled, and the layers that take that."""
    scaling = Scaling(part)
    facts = part.facts
    kept = {node for call in part.trace.calls for node in nodes_in(call.keeps)}
    for node in part.trace.graph.nodes:
        if node.op == "output":
            scaling.fix(kept, Refusal("its value is kept in an attribute, as it is"))
            scaling.fix(node.all_input_nodes, Refusal("its value is returned, as it is"))
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        if node in facts.sources or node in facts.numbers or node in facts.asserted:
            continue
        layout = _layout(node, weights.get(node), scaling)
        if layout is not None:
            scaling.layouts[node] = layout
        if node in facts.memory.written:
            _check_write(node, scaling)
    _fix_seen_values(scaling, model)
    return scaling


def _layout(node: fx.Node, weights: Weights | Refusal | None, scaling: Scaling) -> Layout | None:
    """The channels of a value; none if it keeps the scale 1, and then its operands do, too."""
    step = scaling.part.steps.get(node)
    if isinstance(weights, Weights) and isinstance(step, AffineConv):
        return _through_layer(node, weights, step, scaling)
    if isinstance(weights, Refusal):
        scaling.refused[node] = weights
    operands = scaling.part.facts.operands(node)
    if scaling.layouts.keys().isdisjoint(operands):
        return None
    reason = _reason(node, scaling)
    layout: Layout | None = None
    if (mixed := homogeneous(node, scaling.part.facts)) is not None:
        layout = _tied(operands, reason, scaling)
        if layout is not None and mixed and (layout.axis >= -mixed or layout.spread):
            layout = None
    elif isinstance(step, AffineConv):
        layout = _through_form(step, scaling)
    elif isinstance(step, AffineSum):
        if all(_is_multiple(term) for term in step.terms):
            layout = _tied([term.base for term in step.terms], reason, scaling)
    elif isinstance(step, AffineStack):
        layout = _side_by_side(step, reason, scaling)
    elif isinstance(step, Commuting):
        layout = _through_view(node, step, scaling)
    elif isinstance(step, Several):
        layout = scaling.layouts[operands[0]]  # its parts are read one by one
    elif _is_product(node):
        return _through_product(node, operands, reason, scaling)
    if layout is None:
        scaling.fix(operands, reason)
    return layout


def _through_layer(node: fx.Node, weights: Weights, step: AffineConv, scaling: Scaling) -> Layout:
    groups, read = scaling.groups, scaling.layouts.get(step.base)
    axis = -len(step.axes or ()) - 1
    columns, rows = step.in_channels or 0, step.out_channels or 0
    inputs = None if read is None else _columns(read, axis, columns)
    if inputs is None:
        reason = f"its channels cannot be followed into {described(scaling.part.trace, node)}"
        scaling.fix([step.base], Refusal(f"{reason}; with example_inputs perhaps they can"))
        inputs = groups.new(columns)
        groups.fix(inputs, Refusal("it is not scaled"))
    key = id(fetch(scaling.part.trace.root, weights.weight))
    layer = scaling.layers.get(key)
    if layer is None:
        layer = scaling.layers[key] = Layer(node, weights, inputs, groups.new(rows))
    groups.tie(layer.inputs, inputs)  # of all calls, if there are several
    return Layout(axis, layer.outputs)


def _columns(read: Layout, axis: int, count: int) -> Channels | None:
    """The channels that the columns of a weight read."""
    if read.axis != axis or not read.channels:
        return None
    times, rest = divmod(count, len(read.channels))
    if rest or (times != 1 and not read.spread):
        return None
    return tuple(channel for channel in read.channels for _ in range(times))


def _through_form(form: AffineConv, scaling: Scaling) -> Layout | None:
    """A form that makes each channel of one channel alone, and adds nothing."""
    read = scaling.layouts.get(form.base)
    if read is None or not _is_linear(form) or not form.depthwise:
        return None
    if form.pointwise and form.columns is None:
        return read
    along = form.axes is not None and read.axis == -len(form.axes) - 1
    if read.spread or not along:
        return None
    if form.columns is None:
        return read
    if len(read.channels) != form.columns.total:
        return None
    return Layout(read.axis, tuple(read.channels[index] for index in form.columns.indices))


def _is_linear(form: AffineConv) -> bool:
    pads = any(axis.mode == "value" and axis.padded for axis in form.axes or ())
    return not form.has_bias and not pads


def _is_multiple(form: AffineConv) -> bool:
    """Whether a form is a value times a number, or one number per channel."""
    return _is_linear(form) and form.diagonal and form.columns is None


def _tied(nodes: Sequence[Any], reason: Refusal, scaling: Scaling) -> Layout | None:
    """Let values share their scales; where one has none, the others keep the scale 1."""
    layouts = [scaling.layouts[node] for node in nodes if node in scaling.layouts]
    kinds = {(layout.axis, layout.spread, len(layout.channels)) for layout in layouts}
    if len(layouts) < len(nodes) or len(kinds) > 1:
        scaling.fix(nodes, reason)
        return None
    for layout in layouts[1:]:
        scaling.groups.tie(layouts[0].channels, layout.channels)
    return layouts[0]


def _side_by_side(stack: AffineStack, reason: Refusal, scaling: Scaling) -> Layout | None:
    """Channels of several values in a row; along another axis they share their scales."""
    part, groups = scaling.part, scaling.groups
    bases = [term.base for term in stack.terms if isinstance(term.base, fx.Node)]
    layouts = [scaling.layouts[base] for base in bases if base in scaling.layouts]
    if not all(term.identity for term in stack.terms) or len(bases) < len(stack.terms):
        return None
    if any(layout.spread for layout in layouts) or len({layout.axis for layout in layouts}) != 1:
        return None
    if layouts[0].axis != stack.axis:
        return _tied(bases, reason, scaling)
    channels: list[int] = []
    for base in bases:
        if base in scaling.layouts:
            channels.extend(scaling.layouts[base].channels)
            continue
        count = known_channels(base, stack.axis, None, part.steps, part.facts)
        if count is None:
            return None
        beside = groups.new(count)
        groups.fix(beside, Refusal("it is not scaled"))
        channels.extend(beside)
    return Layout(stack.axis, tuple(channels))


def _through_view(node: fx.Node, step: Commuting, scaling: Scaling) -> Layout | None:
    """A value whose axes are those of its operand, in another order or fewer; a pool, too."""
    facts = scaling.part.facts
    operand = facts.operands(node)[0]
    read = scaling.layouts.get(operand)
    if read is None:  # it is another value of whose shape the view is
        return None
    if read.spread:
        return read if step.copies else None
    for axis in range(-1, -facts.ranks.get(node, 6) - 1, -1):
        if step.input_axis(axis, len(read.channels)) == read.axis:
            return Layout(axis, read.channels)
    if flattens(node, operand, read.axis, scaling.part):
        return Layout(-1, read.channels, spread=True)
    return None


def _through_product(
    node: fx.Node, operands: Sequence[fx.Node], reason: Refusal, scaling: Scaling
) -> Layout | None:
    """A product carries the scale of one factor, a quotient that of the dividend."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    dividend_only = node in scaling.part.facts.memory.written or Trait.DIVIDES in traits(node)
    arguments = (*node.args, *node.kwargs.values())
    carriers = [
        operand
        for operand in operands
        if operand in scaling.layouts
        and (operand is first or not dividend_only)
        and sum(argument is operand for argument in arguments) == 1
        # Of one channel the other factor may make several.
        and len(scaling.layouts[operand].channels) > 1
    ]
    scaling.fix([operand for operand in operands if operand not in carriers[:1]], reason)
    return scaling.layouts[carriers[0]] if carriers else None


def _is_product(node: fx.Node) -> bool:
    """Whether a node is a product or a quotient, and does not round it."""
    rounds = node.kwargs.get("rounding_mode") is not None
    return not rounds and bool(traits(node) & (Trait.MULTIPLIES | Trait.DIVIDES))


def _check_write(node: fx.Node, scaling: Scaling) -> None:
    """What is written in place must have the scale of what was there."""
    facts = scaling.part.facts
    layout = scaling.layouts.get(node)
    for target in facts.memory.written[node]:
        if layout is None or scaling.layouts.get(target) != layout:
            reason = Refusal(f"{described(scaling.part.trace, node)} writes to it in place")
            scaling.fix([node, *facts.memory.alias_class(target)], reason)


def _reason(node: fx.Node, scaling: Scaling) -> Refusal:
    """Why what a node reads keeps the scale 1 if the node lets no scale pass."""
    step, where = scaling.part.steps.get(node), described(scaling.part.trace, node)
    if isinstance(step, AffineConv) and step.has_bias:
        return Refusal(f"{where} adds a constant to it; fuse the model first, if that is possible")
    if isinstance(step, AffineSum | AffineStack):
        return Refusal(f"{where} joins it with a value that keeps its own scale")
    if _is_product(node):
        return Refusal(f"{where} multiplies or divides by it")
    reason = f": {step.reason}" if isinstance(step, Refusal) else ""
    return Refusal(f"{where} reads it, which is not known to let scales pass{reason}")


def _fix_seen_values(scaling: Scaling, model: nn.Module) -> None:
    """Let all values that other code than the graph's may see keep the scale 1.

    A forward that takes options may use its values otherwise when they differ, one that keeps state
    may have stored them, and a public method of the model may run a part of it and return what that
    gives. What the model's parts return is nobody's but its own, be it by forward or by a method.
    """
    trace = scaling.part.trace
    by_methods = {
        key: min(name for owner, name in methods if owner == id(model))
        for key, methods in trace.by_methods.items()
        if any(owner == id(model) for owner, _ in methods)
    }
    varying: set[Call] = set()
    for call in trace.calls:
        method = by_methods.get(id(call.module))
        if method is not None:
            scaling.fix(_given_and_returned(call), _method_reason(method))
        above = call.parent is None or call.parent in varying or method is not None
        if above and may_run_otherwise(call):
            varying.add(call)
    for node in trace.graph.nodes:
        if node.op == "call_module":
            method = by_methods.get(id(fetch(trace.root, str(node.target))))
            if method is not None:
                scaling.fix([node, *node.all_input_nodes], _method_reason(method))
    stateful = "changes its own attributes when it runs, or enters a context such as torch.autocast"
    reasons = [(call, stateful) for call in trace.stateful]
    reasons += [(call, "takes options, and may use its values otherwise") for call in varying]
    for call, reason in reasons:
        scaling.fix(_values_of(call, trace), Refusal(f"{call.path or 'the model'} {reason}"))


def _values_of(call: Call, trace: Trace) -> Iterator[fx.Node]:
    """What a forward names: what it is given, what it computes, and what its parts return."""
    yield from _given_and_returned(call)
    for node in trace.graph.nodes:
        if trace.caller[node] is call:
            yield node
    for inner in trace.calls:
        if inner.parent is call:
            yield from _given_and_returned(inner)


def _given_and_returned(call: Call) -> list[fx.Node]:
    return list(nodes_in((call.args, call.kwargs, call.result)))


def _method_reason(method: str) -> Refusal:
    return Refusal(f"the method {method} may return it")
