"""Lift every operator of a graph that has a rule to what it does to the forms of its operands."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.affine import Affine, AffineConv, AffineStack, AffineSum, identity
from reparam.borders import assigned_border
from reparam.channels import conversion, known_channels
from reparam.effects import operator_name, reads_layout
from reparam.errors import Refusal, ReparamError
from reparam.extents import Extents
from reparam.facts import Facts
from reparam.modules import fetch, has_hooks, special_tensor
from reparam.rules import UNKNOWN, Commuting, Rules, Selecting, Several, Stacked, Step
from reparam.rules.registry import Rule
from reparam.writes import assign


def lift(graph: fx.Graph, facts: Facts, rules: Rules) -> dict[fx.Node, Step]:
    """Apply the rules, once per node.

    Args:
        graph: The flat graph.
        facts: What is known of it.
        rules: The rules of this call.

    Returns:
        For each node with a rule the form of its value over its operands, or a refusal.

    Raises:
        ReparamError: If a rule returns something that is no form.
    """
    steps: dict[fx.Node, Step] = {}
    extents = Extents(steps, facts)
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr", "output") or node in facts.sources:
            continue
        if node in facts.numbers:
            continue
        whole = steps.get(node.all_input_nodes[0]) if node.target is operator.getitem else None
        if isinstance(whole, Several):
            index = node.args[1]
            whole_read = Refusal("several results of an operator are read at once")
            steps[node] = whole.results[index] if isinstance(index, int) else whole_read
            continue
        if node.target is assign:
            border = assigned_border(node, steps, facts)
            if border is not None:
                steps[node] = border
            continue
        found = _find_rule(node, facts, rules)
        if found is None:
            follows_affine = any(
                isinstance(steps.get(arg), Affine | Commuting) for arg in node.args[:1]
            )
            converted = conversion(node, facts) if follows_affine else None
            if converted is not None:
                steps[node] = converted
            continue
        if isinstance(found, Refusal):
            steps[node] = found
            continue
        rule, leading = found
        step = _apply(rule, leading, node, facts, steps, extents)
        if isinstance(step, Selecting):
            step = _selected(step, node, facts, steps)
        if step is NotImplemented:
            continue
        if isinstance(step, Commuting) and step.copies and _is_free(node, facts):
            step = identity(node.all_input_nodes[0])
        if node in facts.written and not isinstance(step, Refusal):
            problem = facts.overwrites(node)
            step = step if problem is None else problem
        steps[node] = step
    return steps


_RESHAPES = ("view", "reshape")


def _is_free(node: fx.Node, facts: Facts) -> bool:
    """Whether nobody sees that a copy is one: no reader asks for its layout in memory."""
    if len(node.all_input_nodes) != 1 or "memory_format" in node.kwargs:
        return False
    readers = {reader for member in facts.alias_class(node) for reader in member.users}
    return not any(reads_layout(reader, facts.root) for reader in readers)


def _find_rule(
    node: fx.Node, facts: Facts, rules: Rules
) -> tuple[Rule, tuple[Any, ...]] | Refusal | None:
    """The rule of a node and the arguments that come before its own."""
    if node.op == "call_module":
        module = fetch(facts.root, str(node.target))
        rule = rules.find(type(module))
        if rules.switched_off(type(module)):
            return Refusal("its rule is switched off for this call")
        if rule is None:
            return None
        if has_hooks(module):
            return Refusal("it has hooks, which would not see the same values any more")
        if "forward" in vars(module):
            return Refusal("its forward is set on the instance")
        given = (*node.args, *node.kwargs.values())
        if any(isinstance(value, tuple | list | dict) for value in given):
            return Refusal("it is called with several values in one argument")
        if any(value is None for value in given):
            return Refusal("it is called with None")
        if (special := special_tensor(module)) is not None:
            return Refusal(f"its parameters are of a class of its own, {type(special).__name__}")
        if facts.is_written(module):
            return Refusal("its parameters or buffers may be written to in forward")
        return rule, (module,)
    target: Any = node.target
    if node.op == "call_method":
        target = getattr(torch.Tensor, str(target), None)
    if target is None:
        return None
    rule = rules.find(target)
    if rules.switched_off(target):
        return Refusal("its rule is switched off for this call")
    return None if rule is None else (rule, ())


@cache
def _signature(rule: Rule) -> inspect.Signature:
    return inspect.signature(rule)


def _apply(
    rule: Rule,
    leading: tuple[Any, ...],
    node: fx.Node,
    facts: Facts,
    steps: Mapping[fx.Node, Step],
    extents: Extents,
) -> Any:
    def lifted(argument: fx.Node) -> Any:
        if argument in facts.sources:
            return facts.constant(argument)
        if argument in facts.numbers:
            return extents.of(argument, node) if operator_name(node) in _RESHAPES else UNKNOWN
        step = steps.get(argument)
        if isinstance(step, Stacked):
            return step
        return identity(argument, facts.ranks.get(argument), facts.ones.get(argument, 0))

    args = _map_nodes(node.args, lifted)
    kwargs = {
        "input" if name == "self" else name: _map_nodes(value, lifted)
        for name, value in node.kwargs.items()
    }
    try:
        if leading:
            args, kwargs = _by_position(leading[0], args, kwargs)
        _signature(rule).bind(*leading, *args, **kwargs)
    except TypeError as error:
        return Refusal(f"its rule does not know how it is called ({error})")
    try:
        step: Any = rule(*leading, *args, **kwargs)
    except Exception as error:
        raise ReparamError(
            f"the rule {rule.__module__}.{rule.__qualname__} raised {type(error).__name__} for "
            f"{node.target}: {error}"
        ) from error
    if step is NotImplemented:
        return step
    if isinstance(step, AffineStack | Selecting):
        return step
    if not isinstance(step, AffineConv | AffineSum | Commuting | Stacked | Several | Refusal):
        raise ReparamError(
            f"the rule {rule.__module__}.{rule.__qualname__} returned {type(step).__name__} for "
            f"{node.target}: a rule must return a form (such as x.scale(...)) or a Refusal"
        )
    if not leading and not isinstance(step, Refusal | Commuting | Stacked | Several):
        step = _with_sources(step, node, facts)
    if isinstance(step, AffineConv) and step.diagonal and not _counts_channels(node, leading):
        problem = _may_broadcast(step, node, facts, steps)
        if problem is not None:
            return problem
    result: Step = step
    return result


def _selected(
    selecting: Selecting, node: fx.Node, facts: Facts, steps: Mapping[fx.Node, Step]
) -> Any:
    """The parts of the channels of a value, if it is known how many there are."""
    base = facts.operands(node)[0]
    channels = known_channels(base, selecting.axis, None, steps, facts)
    if channels is None:
        return NotImplemented
    x = identity(base, facts.ranks.get(base))
    parts = [x.select(part, channels, selecting.axis) for part in selecting.parts(channels)]
    return parts[0] if selecting.single else Several(tuple(parts))


def _counts_channels(node: fx.Node, leading: tuple[Any, ...]) -> bool:
    """Whether an operator raises unless its input has as many channels as its parameters."""
    name = type(leading[0]).__name__ if leading else operator_name(node)
    return any(part in name.lower() for part in ("conv", "linear", "batch_norm", "batchnorm"))


def _may_broadcast(
    step: AffineConv, node: fx.Node, facts: Facts, steps: Mapping[fx.Node, Step]
) -> Refusal | None:
    """One factor per channel must not meet a value of one channel, which it would widen.

    Of the model's own input it is taken that it has as many channels as it is normalised by.
    """
    base, axes = step.base, step.axes
    if step.out_channels is None or axes is None or not isinstance(base, fx.Node):
        return None
    channels = known_channels(base, -len(axes) - 1, step.out_channels, steps, facts)
    if channels == step.out_channels:
        return None
    if channels is None:
        return Refusal(
            "the number of channels that a factor per channel meets is not known; pass "
            "example_inputs"
        )
    return Refusal(f"{step.out_channels} factors meet {channels} channels: a sum that broadcasts")


def _by_position(
    module: nn.Module, args: Any, kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pass a module's inputs by position, however the call wrote them."""
    if not kwargs:
        return args, kwargs
    bound = _signature(type(module).forward).bind(
        module, *args, **{"input" if name == "self" else name: v for name, v in kwargs.items()}
    )
    return bound.args[1:], bound.kwargs


def _with_sources(step: AffineConv | AffineSum, node: fx.Node, facts: Facts) -> Step:
    """Take dtype and device from the parameters themselves, not from what was computed of them."""
    constants = [arg for arg in node.all_input_nodes if arg in facts.sources]
    names = {name for constant in constants for name in facts.sources[constant]}
    tensors = [fetch(facts.root, name) for name in sorted(names)]
    # Numbers have none: what is made of them is seen in a run. A scalar takes on another's type.
    made = [facts.constant_as_it_runs(arg) for arg in constants if arg in facts.made]
    tensors += [value for value in made if isinstance(value, Tensor) and value.dim()]
    floats = [t for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
    if isinstance(step, AffineSum) or step.dtype is None or not (floats or made):
        return step
    if not floats:
        return replace(step, dtype=None, like=None)
    dtypes = {tensor.dtype for tensor in floats}
    if len(dtypes) > 1:
        return Refusal(f"parameters of different dtypes ({', '.join(sorted(map(str, dtypes)))})")
    return replace(step, dtype=floats[0].dtype, like=max(floats, key=Tensor.numel))


def _map_nodes(value: Any, function: Any) -> Any:
    """Replace the nodes in an argument, keeping lists and tuples ordinary ones."""
    if isinstance(value, fx.Node):
        return function(value)
    if isinstance(value, tuple | list):
        return (
            type(value)([_map_nodes(entry, function) for entry in value])
            if not hasattr(value, "_fields")
            else value
        )
    if isinstance(value, dict):
        return {key: _map_nodes(entry, function) for key, entry in value.items()}
    return value
