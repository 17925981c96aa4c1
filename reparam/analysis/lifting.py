"""Lift every operator of a graph that has a rule to what it does to the forms of its operands."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.algebra import Affine, AffineConv, AffineStack, AffineSum, identity, note_origin
from reparam.analysis.borders import assigned_border
from reparam.analysis.channels import known_channels, of_known_channels, single_channel
from reparam.analysis.dtypes import conversion
from reparam.analysis.effects import reads_layout
from reparam.analysis.extents import Extents
from reparam.analysis.facts import Facts, Granted
from reparam.capture import assign, chooses_by_kinds, operator_name, torch_name
from reparam.errors import Refusal
from reparam.modules import (
    fetch,
    in_float64,
    join,
    layer_at,
    undisturbed,
    unlike_its_class,
)
from reparam.rules import (
    UNKNOWN,
    Commuting,
    Normalized,
    Rule,
    RuleError,
    Rules,
    Selecting,
    Several,
    Stacked,
    Step,
    call_rule,
    is_built_in,
)

Lifted = Step | Selecting | None


def lift(
    graph: fx.Graph, facts: Facts, rules: Rules, path: str = ""
) -> tuple[dict[fx.Node, Step], Granted]:
    """Apply the rules, once per node, and again to values that may have another number of axes.

    Returns:
        For each node with a rule the form of its value over its operands, or a refusal; and which
        of the forms rest on what is taken for granted.

    Raises:
        ReparamError: If a rule returns something that is no form.
    """
    lifting = _Lifting(facts, rules, path)
    others = [lifting.with_ranks(ranks) for ranks in facts.other_ranks]
    by_axes: set[fx.Node] = set()
    for node in graph.nodes:
        computes = node.op not in ("placeholder", "get_attr", "output")
        if computes and node not in facts.sources and node not in facts.numbers:
            step = lifting.step(node)
            if step is not None:
                if (
                    not isinstance(step, Refusal)
                    and not _ignores_rank(node, facts)
                    and any(
                        ranks.keys() & node.all_input_nodes and other.differs(node, step)
                        for ranks, other in zip(facts.other_ranks, others, strict=True)
                    )
                ):
                    by_axes.add(node)
                lifting.steps[node] = step
    return lifting.steps, Granted(frozenset(by_axes), frozenset(lifting.by_channels))


def _ignores_rank(node: fx.Node, facts: Facts) -> bool:
    """Whether an operator's weights alone say along which axes it works."""
    if node.op != "call_module":
        return torch_name(node).startswith(("conv", "linear"))
    kinds = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
    module = layer_at(facts.root, str(node.target))
    return isinstance(module, kinds) and type(module).__module__.startswith("torch.nn.modules")


def _outline(step: Lifted) -> Any:
    """What tells a step from another one of the same operator, but for the weights."""
    if isinstance(step, AffineConv):
        return step.axes, step.in_channels, step.out_channels, step.columns, step.identity
    if isinstance(step, AffineSum | AffineStack):
        return getattr(step, "axis", None), [_outline(term) for term in step.terms]
    if isinstance(step, Several):
        return [_outline(result) for result in step.results]
    if isinstance(step, Stacked):
        return step.dim, [_outline(branch) for branch in step.branches]
    if isinstance(step, Normalized):
        return _outline(step.ending)
    if isinstance(step, Commuting):
        places = [step.input_axis(axis, None) for axis in range(-_MOST_AXES, 0)]
        return places, step.runs and [step.runs(axis) for axis in range(-_MOST_AXES, 0)]
    return step


_MOST_AXES = 5


def target_of(node: fx.Node, root: nn.Module) -> Any:
    """What the rule of a node would be registered for."""
    if node.op == "call_module":
        return type(fetch(root, str(node.target)))
    if node.op == "call_method":
        return getattr(torch.Tensor, str(node.target), None)
    return node.target


class _Lifting:
    """The steps of the nodes so far, and how to lift the next one."""

    def __init__(self, facts: Facts, rules: Rules, path: str) -> None:
        self.facts = facts
        self.rules = rules
        self.path = path
        self.steps: dict[fx.Node, Step] = {}
        self.by_channels: set[fx.Node] = set()
        """The nodes whose forms rest on a number of channels that is taken for granted."""
        self.extents = Extents(self.steps, facts)

    def with_ranks(self, ranks: Mapping[fx.Node, int]) -> _Lifting:
        """The same, were the number of axes of some values another one."""
        facts = self.facts
        other = _Lifting(replace(facts, ranks={**facts.ranks, **ranks}), self.rules, self.path)
        other.steps = self.steps
        other.extents = Extents(self.steps, other.facts)
        return other

    def differs(self, node: fx.Node, step: Step) -> bool:
        """Whether a node would have another step than the one it has."""
        try:
            return bool(_outline(step) != _outline(self.step(node)))
        except Exception:  # a rule need not know what it gets here
            return True

    def step(self, node: fx.Node) -> Step | None:
        """What a node does to the forms of its operands; None if nothing is known of it."""
        if node.target is operator.getitem:
            whole = self.steps.get(node.all_input_nodes[0])
            if isinstance(whole, Several):
                index = node.args[1]
                several = Refusal("several results of an operator are read at once")
                return whole.results[index] if isinstance(index, int) else several
        picked = single_channel(node, self.facts)
        if picked is not None:
            return self._selected(node, *picked)
        if node.target is assign:
            return assigned_border(node, self.steps, self.facts)
        target = target_of(node, self.facts.root)
        if self.rules.switched_off(target):
            return Refusal("its rule is switched off for this call")
        rule = self.rules.find(target)
        if rule is None:
            first: Any = node.args[0] if node.args else None
            affine = isinstance(self.steps.get(first), Affine | Commuting)
            return conversion(node, self.facts) if affine else None
        if not self.facts.operands(node):
            return Refusal("nothing that it is called with depends on the model's input")
        if node.op != "call_module":
            return self._by_rule(rule, node, None)
        module = fetch(self.facts.root, str(node.target))
        problem = unlike_its_class(module) or _unlike_its_use(node)
        if problem is None and self.facts.memory.is_written(module):
            step = self._by_rule(rule, node, module)  # which may have a better reason
            return step if isinstance(step, Refusal) else _WRITTEN
        return problem or self._by_rule(rule, node, module)

    def _by_rule(self, rule: Rule, node: fx.Node, module: nn.Module | None) -> Step | None:
        """What a rule says of a node, and what others see of that."""
        try:
            step = self._said(rule, node, module)
        except RuleError as error:
            return Refusal(str(error))
        if isinstance(step, Selecting):
            step = self._selected(node, self.facts.operands(node)[0], step)
        if isinstance(step, AffineStack):
            step = of_known_channels(step, self.facts, self.steps)
        if isinstance(step, Commuting) and step.runs is not None:
            operand = self.facts.operands(node)[0]
            size = partial(known_channels, operand, taken=None, steps=self.steps, facts=self.facts)
            step = replace(step, size=size)
        if isinstance(step, Commuting) and step.copies and _is_free(node, self.facts):
            step = identity(node.all_input_nodes[0])
        if node in self.facts.memory.written and not isinstance(step, Refusal | None):
            return self.facts.memory.overwrites(node) or step
        return step

    def _selected(self, node: fx.Node, base: fx.Node, selecting: Selecting) -> Step | None:
        """The parts of the channels of a value, if it is known how many there are."""
        facts, axis = self.facts, selecting.axis
        channels = known_channels(base, axis, None, self.steps, facts)
        rank = facts.ranks.get(base, 0)
        if not channels and selecting.by_number and axis == 1 - rank and rank > _OF_ROWS:
            if base not in facts.shapes:
                return Refusal(
                    "the number of the channels of which it takes some is not known; pass "
                    "example_inputs"
                )
            # Of images it is taken that they have as many as those of the example.
            channels = facts.shapes[base][axis]
            self.by_channels.add(node)
        if not channels:
            return None
        wanted = selecting.parts(channels)
        if not all(wanted):
            return Refusal("a part without channels")
        x = identity(base, facts.ranks.get(base))
        parts = [x.select(part, channels, axis) for part in wanted]
        return parts[0] if selecting.single else Several(tuple(parts))

    def _said(self, rule: Rule, node: fx.Node, module: nn.Module | None) -> Lifted:
        """What a rule says of a node."""
        args, kwargs = _map_nodes(
            (tuple(node.args), dict(node.kwargs)), lambda operand: self._operand(operand, node)
        )
        where = f"at {join(self.path, node.name if module is None else str(node.target))}"
        target = target_of(node, self.facts.root)
        if module is None:
            step = call_rule(rule, target, where, args, kwargs)
            if isinstance(step, AffineConv | AffineSum | Normalized):
                step = _typed_as_constants(step, node, self.facts)
        else:
            try:
                args, kwargs = _by_position(module, args, kwargs)
            except TypeError as error:
                return Refusal(f"its rule does not know how it is called ({error})")
            taught = not is_built_in(rule)
            with holding_float64(module) if taught else nullcontext():
                step = call_rule(rule, target, where, (module, *args), kwargs)
            if taught:
                step = _taken_after(step, [*module.parameters(), *module.buffers()], taught=True)
        if isinstance(step, AffineConv) and step.diagonal and not _counts_channels(node, module):
            if not _surely_as_many(step, self.facts, self.steps):
                self.by_channels.add(node)
            return _may_broadcast(step, node, self.facts, self.steps) or step
        return step

    def _operand(self, operand: fx.Node, reader: fx.Node) -> Any:
        """What the rule of a reader sees of an operand."""
        facts = self.facts
        if operand in facts.sources:
            return facts.constants.exact(operand)
        if operand in facts.numbers or chooses_by_kinds(operand):
            number = self.extents.by_axes(operand, reader)
            if number is not UNKNOWN or operator_name(reader) not in _RESHAPES:
                return number
            return self.extents.of(operand, reader)
        step = self.steps.get(operand)
        if isinstance(step, Stacked):
            return step
        return identity(operand, facts.ranks.get(operand), facts.ones.get(operand, 0))


_OF_ROWS = 3
"""Values of fewer axes may be rows of features, of which there are any number."""

_RESHAPES = ("view", "reshape", "expand")


def _unlike_its_use(node: fx.Node) -> Refusal | None:
    """Why a module may be called otherwise than the rule of its class says."""
    inputs = (*node.args, *node.kwargs.values())
    if any(isinstance(value, tuple | list | dict) for value in inputs):
        return Refusal("it is called with several values in one argument")
    if any(value is None for value in inputs):
        return Refusal("it is called with None")
    return None


_WRITTEN = Refusal("its parameters or buffers may be written to in forward")


def _is_free(node: fx.Node, facts: Facts) -> bool:
    """Whether nobody sees that a copy is one: no reader asks for its layout in memory."""
    if len(node.all_input_nodes) != 1 or "memory_format" in node.kwargs:
        return False
    readers = {reader for member in facts.memory.alias_class(node) for reader in member.users}
    return not any(reads_layout(reader, facts.root) for reader in readers)


@contextmanager
def holding_float64(module: nn.Module) -> Iterator[None]:
    """Let a module hold its parameters and buffers in float64 while its rule reads them.

    So what a rule computes of them is as exact as what they are compared with. Whatever the rule
    changes in the module is put back.
    """
    with undisturbed(module):
        exact: dict[int, Any] = {}
        for part in module.modules():
            for held in (part._parameters, part._buffers):
                for name, tensor in held.items():
                    if tensor is not None and tensor.is_floating_point():
                        if id(tensor) not in exact:
                            exact[id(tensor)] = tensor.detach().double()
                            note_origin(exact[id(tensor)], in_float64, (tensor,), {})
                        held[name] = exact[id(tensor)]
        yield


def _counts_channels(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether an operator raises unless its input has as many channels as its parameters."""
    layer = None if module is None else getattr(module, "main_layer", module)
    name = operator_name(node) if layer is None else type(layer).__name__
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


def _surely_as_many(step: AffineConv, facts: Facts, steps: Mapping[fx.Node, Step]) -> bool:
    """Whether a value has as many channels as there are factors whatever the model gets."""
    base, axes = step.base, step.axes
    if step.out_channels is None or axes is None or not isinstance(base, fx.Node):
        return True
    without_examples = replace(facts, shapes={}) if facts.shapes and not facts.recorded else facts
    channels = known_channels(base, -len(axes) - 1, None, steps, without_examples)
    return channels == step.out_channels


def _by_position(
    module: nn.Module, args: Any, kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pass a module's inputs by position, however the call wrote them."""
    if not kwargs:
        return args, kwargs
    bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
    return bound.args[1:], bound.kwargs


def _typed_as_constants(step: Affine | Normalized, node: fx.Node, facts: Facts) -> Lifted:
    """A form with the type of the parameters that the constants of a call are made of."""
    constants = [arg for arg in node.all_input_nodes if arg in facts.sources]
    names = {name for arg in constants for name in facts.sources[arg]}
    made = [arg for arg in constants if arg in facts.constants.made]
    # What is made of numbers is seen in a run. A scalar takes on another's type.
    values = [facts.constants.as_it_runs(arg) for arg in made]
    several = [value for value in values if isinstance(value, Tensor) and value.dim()]
    tensors = [*(fetch(facts.root, name) for name in sorted(names)), *several]
    form = step.ending if isinstance(step, Normalized) else step
    typed = _taken_after(form, tensors, made=bool(made))
    if isinstance(step, Normalized) and isinstance(typed, AffineConv):
        return replace(step, ending=typed)
    return typed


def _taken_after(
    step: Lifted, tensors: Iterable[Any], *, taught: bool = False, made: bool = False
) -> Lifted:
    """Take dtype and device from the parameters themselves, not from what was computed of them.

    Args:
        step: What a rule said.
        tensors: The parameters.
        taught: Whether the rule saw none of them, only copies.
        made: Whether it saw tensors that are made of numbers.
    """
    floats = [t for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
    if isinstance(step, AffineSum | AffineStack):
        terms = [_taken_after(form, floats, taught=taught, made=made) for form in step.terms]
        forms = tuple(term for term in terms if isinstance(term, AffineConv))
        refusals = (term for term in terms if isinstance(term, Refusal))
        return next(refusals, replace(step, terms=forms))
    if not isinstance(step, AffineConv):
        return step
    if not floats:
        return _without_type(step, taught=taught, made=made)
    like = max(floats, key=lambda tensor: (tensor.numel(), tensor.requires_grad))
    if step.dtype is None:
        return replace(step, like=like) if taught and step.like is not None else step
    dtypes = {tensor.dtype for tensor in floats}
    if len(dtypes) > 1:
        return Refusal(f"parameters of different dtypes ({', '.join(sorted(map(str, dtypes)))})")
    return replace(step, dtype=like.dtype, like=like)


def _without_type(step: AffineConv, *, taught: bool, made: bool) -> AffineConv:
    """A form of no floating-point parameters: it has the type of the values that it meets."""
    if taught:
        return replace(step, dtype=None)
    # So has a scale or shift by integers.
    untyped = (made or step.diagonal) and step.dtype is not None
    return replace(step, dtype=None, like=None) if untyped else step


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
