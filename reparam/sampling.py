"""Run the modules that get new code on random inputs, before and after: do they still agree?

Regions are checked by themselves, which does not see a mistake in how they were put back. So the
graph as it was runs once, in float64 on an input as small as works, and what every module was given
and what it returned is kept; its new code must return the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from reparam.affine import AffineConv
from reparam.calls import Call
from reparam.effects import NUMBER_FUNCTIONS, converts, is_torch, operator_name
from reparam.exact_calls import call_exact
from reparam.modules import fetch, has_hooks
from reparam.parts import Part
from reparam.ranks import keeps_shape
from reparam.rules import Commuting
from reparam.running import copied, in_float64, run_function
from reparam.structures import filled, nodes_in
from reparam.verification import relative_error

MODULE_BOUND = 1e-6
"""Largest relative difference of a module, in float64; regions have a bound near rounding."""

_SIZES = {1: (64, 2048), 2: (32, 64), 3: (16, 32)}
_DISCONTINUOUS = set(
    "sign sgn round floor ceil trunc frac floor_divide floordiv remainder fmod mod argmax argmin "
    "topk sort argsort max min eq ne lt le gt ge heaviside bucketize searchsorted nonzero bool "
    "float half double bfloat16 to type type_as _to_copy int long".split()
)


@dataclass(frozen=True)
class Sample:
    """What one call was given and what it returned."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


def sample_calls(part: Part, calls: Collection[Call]) -> dict[Call, Sample]:
    """Run the graph of a part on a random input and keep what some calls got and returned.

    Args:
        part: The part; its graph is not edited yet.
        calls: The calls.

    Returns:
        The samples; calls that depend on code of the user's or on random numbers have none, and
        there are none at all if no input of a usual size works.
    """
    for inputs in random_inputs(part):
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                return _run(part, inputs, calls)
        except Exception:  # another size, perhaps
            continue
    return {}


def module_error(
    module: nn.Module,
    sample: Sample,
    exact: Mapping[str, Tensor],
    inner: Mapping[str, Sample] | None = None,
) -> float:
    """How far what a module returns is from a sample, in float64.

    Args:
        module: The module with its new code.
        sample: What it was given, and returned before.
        exact: Weights of it that are known more exactly than it holds them.
        inner: Parts of it, by path, that need not run: they are to be given what their sample was
            given, and return what it returned.

    Returns:
        The largest relative difference, those of what the parts are given included.
    """
    with _standing_in(module, inner or {}) as errors:
        result = _again(module, (sample.args, sample.kwargs), exact, inner or ())
    return max(_difference(sample.result, result), *errors, 0.0)


@contextmanager
def _standing_in(module: nn.Module, inner: Mapping[str, Sample]) -> Iterator[list[float]]:
    """Let parts of a module return what they did; collects the errors of what they are given."""
    errors: list[float] = []
    with ExitStack() as stack:
        for path, sample in inner.items():
            part = fetch(module, path)
            before = dict(vars(part))
            stack.callback(vars(part).update, before)
            stack.callback(vars(part).pop, "forward")

            def replay(*args: Any, sample: Sample = sample, **kwargs: Any) -> Any:
                errors.append(_difference((sample.args, sample.kwargs), (args, kwargs)))
                return copied(sample.result)

            vars(part)["forward"] = replay
        yield errors


def is_chaotic(module: nn.Module, sample: Sample, exact: Mapping[str, Tensor]) -> bool:
    """Whether rounding of the inputs changes what a module returns beyond recognition.

    Args:
        module: The module with its new code.
        sample: What it was given.
        exact: Weights of it that are known more exactly than it holds them.
    """
    given = (sample.args, sample.kwargs)
    generator = torch.Generator("cpu").manual_seed(0)

    def rounded(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        signs = torch.randint(-1, 2, value.shape, generator=generator).to(value)
        return value * (1 + _ROUNDING * signs)

    one, two = (_again(module, inputs, exact) for inputs in (given, tree_map(rounded, given)))
    return _difference(one, two) > MODULE_BOUND


def _again(
    module: nn.Module,
    given: tuple[Any, Any],
    exact: Mapping[str, Tensor],
    without: Collection[str] = (),
) -> Any:
    args, kwargs = copied(given)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return call_exact(module, args, kwargs, exact, without)


def _difference(before: Any, after: Any) -> float:
    """The largest relative difference of any tensor; infinite if their shapes differ."""
    ones, others = (
        [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        for value in (before, after)
    )
    if [tensor.shape for tensor in ones] != [tensor.shape for tensor in others]:
        return float("inf")
    return max(
        (relative_error(other, one) for one, other in zip(ones, others, strict=True)), default=0.0
    )


def may_run(module: nn.Module) -> bool:
    """Whether running a module calls nobody who listens."""
    return not any(map(has_hooks, module.modules()))


# -- Inputs ---------------------------------------------------------------------------------------


def random_inputs(part: Part) -> Iterator[dict[fx.Node, Tensor]]:
    """Random inputs of a part in float64, the smallest first."""
    device = next((tensor.device for tensor in part.trace.root.parameters()), None)
    if device is not None and device.type == "meta":
        return
    generator = torch.Generator().manual_seed(0)
    layouts = {
        node: _layout(node, part) for node in part.trace.graph.nodes if node.op == "placeholder"
    }
    for attempt in range(2):
        inputs = {}
        for node, layout in layouts.items():
            if layout is None:
                continue
            rank, sizes = layout
            usual = _SIZES.get(rank - 2, (4, 16))[attempt]
            shape = [2, *[usual] * (rank - 1)]
            for axis, size in sizes.items():
                shape[axis] = size
            value = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
            inputs[node] = value if device is None else value.to(device)
        if inputs:
            yield inputs


def _layout(node: fx.Node, part: Part) -> tuple[int, dict[int, int]] | None:
    """The number of axes of an input and the sizes of some, as its first affine readers tell."""
    sizes: dict[int, int] = {}
    pending, seen = [node], set()
    while pending:
        value = pending.pop(0)
        for reader in value.users:
            step = part.steps.get(reader)
            form = step if isinstance(step, AffineConv) and step.base is value else None
            if form is not None and form.axes is not None and form.in_channels is not None:
                sizes.setdefault(-len(form.axes) - 1, form.in_channels)
            if reader not in seen and (
                (form is not None and form.diagonal) or keeps_shape(reader, part.facts.root)
            ):
                seen.add(reader)
                pending.append(reader)
    if not sizes:
        return None
    rank = part.facts.ranks.get(node, max(1 - min(sizes), 2))
    return (rank, sizes) if rank > 1 and all(-axis < rank for axis in sizes) else None


# -- Running --------------------------------------------------------------------------------------


def _run(
    part: Part, inputs: Mapping[fx.Node, Tensor], calls: Collection[Call]
) -> dict[Call, Sample]:
    order, sources = part.facts.order, part.facts.sources
    inside: dict[Call, list[fx.Node]] = {call: [] for call in calls}
    for node, caller in part.trace.caller.items():
        if node.op not in ("placeholder", "output", "get_attr"):
            for call in inside.keys() & set(caller.ancestry()):
                inside[call].append(node)
    starting: dict[fx.Node, list[Call]] = {}
    ending: dict[fx.Node, list[Call]] = {}
    for call, nodes in inside.items():
        if nodes:
            starting.setdefault(min(nodes, key=order.__getitem__), []).append(call)
            ending.setdefault(max(nodes, key=order.__getitem__), []).append(call)
    values: dict[fx.Node, Any] = {}
    given: dict[Call, Any] = {}
    samples: dict[Call, Sample] = {}

    def read(node: fx.Node) -> Any:
        if node not in values:
            values[node] = in_float64(part.facts.constant(node))
        return values[node]

    for node in order:
        for call in starting.get(node, ()):
            if is_known((call.args, call.kwargs), values, part):
                given[call] = copied(filled((call.args, call.kwargs), read))
        if node in inputs:
            values[node] = inputs[node]
        elif node.op not in ("placeholder", "output", "get_attr") and node not in sources:
            known = is_known((node.args, node.kwargs), values, part)
            if known and runs_alone(node, part):
                _execute(node, values, read, part)
        for call in ending.get(node, ()):
            # Nothing in it may be unknown, even what does not reach its result.
            complete = all(n in values or n in sources for n in inside[call])
            if call in given and complete and is_known(call.result, values, part):
                result = copied(filled(call.result, read))
                if _is_usual(result):
                    args, kwargs = given[call]
                    samples[call] = Sample(args, kwargs, result)
    return samples


def is_known(structure: Any, values: Mapping[fx.Node, Any], part: Part) -> bool:
    """Whether all nodes in a structure have a value, or are constants."""
    nodes: list[fx.Node] = []
    fx.map_arg(structure, nodes.append)
    nodes.extend(nodes_in(structure))
    return all(node in values or node in part.facts.sources for node in nodes)


def runs_alone(node: fx.Node, part: Part) -> bool:
    """Whether running a node runs nobody's own code, and its value does not jump."""
    if node.op == "call_module":
        module = fetch(part.trace.root, str(node.target))
        ours = type(module).__module__.startswith("torch.nn.modules") or node in part.steps
        return ours and may_run(module) and "forward" not in vars(module)
    name = operator_name(node).strip("_")
    if node in part.facts.numbers:
        return True
    if converts(node) and isinstance(part.steps.get(node), Commuting):
        return True
    if name in _DISCONTINUOUS:
        return False
    if node.op == "call_method":
        return True
    return node in part.steps or is_torch(node.target) or node.target in NUMBER_FUNCTIONS


def _execute(node: fx.Node, values: dict[fx.Node, Any], read: Any, part: Part) -> None:
    args, kwargs = fx.map_arg(node.args, read), fx.map_arg(node.kwargs, read)
    before = torch.get_rng_state()
    result: Any
    if node.op == "call_module":
        module = fetch(part.trace.root, str(node.target))
        result = call_exact(module, args, kwargs)
    elif converts(node):
        result = args[0]
    else:
        result = run_function(node, args, kwargs)
    if not torch.equal(torch.get_rng_state(), before):
        return  # a random number
    tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    if all(not t.is_floating_point() or t.dtype == torch.float64 for t in tensors):
        values[node] = result


def _is_usual(result: Any) -> bool:
    """Whether a result neither overflows nor all but vanishes, where float64 has fewer digits."""
    tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    largest = [float(t.abs().max()) for t in tensors if t.is_floating_point() and t.numel()]
    return bool(tensors) and all(not one or _FAINT < one < inf for one in largest)


_FAINT = 1e-290
"""Values near the smallest that float64 holds have fewer digits."""

_ROUNDING = 2.0**-52
"""One unit in the last place of 1, in float64."""
