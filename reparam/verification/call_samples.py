"""What calls of modules were given and returned in one run, and whether new code agrees.

The graph of a part runs once as it was, in float64 on a random input as small as works. Whatever
becomes of the modules that were called in it, given the same they must return the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from reparam.analysis import Part
from reparam.capture import Call, filled, nodes_in
from reparam.modules import call_exact, call_in_modes, copied_values, fetch, random_numbers_kept
from reparam.verification.exact_run import ExactRun
from reparam.verification.model_check import relative_error
from reparam.verification.random_runs import random_inputs, try_to_run

_ROUNDING = 2.0**-52
"""One unit in the last place of 1, in float64."""


@dataclass(frozen=True)
class Sample:
    """The positional and the keyword arguments of one call of a module, and what it returned."""

    inputs: tuple[tuple[Any, ...], dict[str, Any]]
    result: Any


def sample_calls(part: Part, calls: Collection[Call]) -> dict[Call, Sample]:
    """Run the graph of a part on a random input and keep what some calls got and returned.

    Returns:
        The samples; calls that depend on code of the user's or on random numbers have none, and
        there are none at all if no input of a usual size works.
    """
    for inputs in random_inputs(part):
        try:
            with random_numbers_kept(), torch.no_grad():
                return _sampled(part, inputs, calls)
        except Exception:  # another size, perhaps
            continue
    return {}


def _sampled(
    part: Part, inputs: Mapping[fx.Node, Tensor], calls: Collection[Call]
) -> dict[Call, Sample]:
    """The samples of one run."""
    inside = _nodes_inside(part, calls)
    starting: dict[fx.Node, list[Call]] = defaultdict(list)
    ending: dict[fx.Node, list[Call]] = defaultdict(list)
    for call, nodes in inside.items():
        starting[nodes[0]].append(call)
        ending[nodes[-1]].append(call)
    run = ExactRun(part.facts, dict(inputs))
    inputs_of: dict[Call, Any] = {}
    samples: dict[Call, Sample] = {}
    order = part.facts.order
    for node in order:
        for call in starting.get(node, ()):  # what follows may write to what it is given
            if run.knows((call.args, call.kwargs)):
                inputs_of[call] = _now(part, run, (call.args, call.kwargs), order[node] - 1)
        try_to_run(node, run, part)
        for call in ending.get(node, ()):
            # Nothing in it may be unknown, even what does not reach its result.
            if call in inputs_of and run.knows((inside[call], call.result)):
                result = _now(part, run, call.result, order[node])
                if _is_usual(result):
                    samples[call] = Sample(inputs_of[call], result)
    return samples


def _now(part: Part, run: ExactRun, structure: Any, position: int) -> Any:
    """What the values in a structure are, also once what is after a position has run."""
    memory, last = part.facts.memory, len(part.facts.order)
    values = filled(structure, run.read)
    written = any(memory.write_between(node, position, last) for node in nodes_in(structure))
    return copied_values(values) if written else values


def _nodes_inside(part: Part, calls: Collection[Call]) -> dict[Call, list[fx.Node]]:
    """The operators that run in each of some calls, in order; calls without any are left out."""
    inside: dict[Call, list[fx.Node]] = {}
    for node in part.facts.order:
        if node.op not in ("placeholder", "output", "get_attr"):
            for call in part.trace.caller[node].ancestry():
                if call in calls:
                    inside.setdefault(call, []).append(node)
    for way in part.trace.ways_in:
        nodes = [node for node in way.nodes if node in part.facts.order and node.op != "get_attr"]
        if nodes and way.owner in calls:
            inside[way.call] = nodes
    return inside


def _is_usual(result: Any) -> bool:
    """Whether a result neither overflows nor all but vanishes, where float64 has fewer digits."""
    tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    largest = [float(t.abs().max()) for t in tensors if t.is_floating_point() and t.numel()]
    return bool(tensors) and all(not size or _FAINT < size < inf for size in largest)


_FAINT = 1e-290
"""Values near the smallest that float64 holds have fewer digits."""


def module_error(
    module: nn.Module,
    sample: Sample,
    exact: Mapping[int, Tensor],
    inner: Mapping[str, Sample] | None = None,
) -> float:
    """How far what a module returns is from a sample, in float64.

    Its weights before they are rounded stand by the identity of those. Inner parts, by path, need
    not run: they are to be given what their sample was given, and return what it returned.

    Returns:
        The largest relative difference, those of what the parts are given included.
    """
    with _standing_in(module, inner or {}) as errors:
        result = _called(module, sample.inputs, exact, inner or ())
    return max(_difference(sample.result, result), *errors, 0.0)


def original_errors(
    module: nn.Module, sample: Sample, inner: Mapping[str, Sample]
) -> tuple[float, float]:
    """How far what a module's own code returns is from a sample of its graph, in float64.

    Returns:
        The largest relative difference from the sample, those of what the parts are given included,
        and that of two runs, in other modes, under other random numbers, one after the other. They
        are infinite where something of another structure was returned.
    """
    with _standing_in(module, inner) as errors:
        results = call_in_modes(module, lambda: copied_values(sample.inputs), inner)
    first, second = results
    error = max(_difference(sample.result, first), *errors, 0.0)
    return error, _difference(first, second)


def errors_in_one_run(
    module: nn.Module,
    sample: Sample,
    parts: Mapping[str, Sequence[Sample]],
    exact: Mapping[int, Tensor] | None = None,
) -> dict[str, float]:
    """How far what a module and parts of it return is from samples, in one run in float64.

    Args:
        module: The module.
        sample: The sample of its call.
        parts: The samples of some parts, by path in it, in the order in which they are called.
        exact: Its weights before they were rounded, by the identity of those. Without, it is the
            user's own module, and runs again in another mode, under other random numbers.

    Returns:
        The largest relative difference of each, by path, those of what a part was given included;
        infinite where a part did not run as often as it should.
    """
    witnesses = {}
    with ExitStack() as stack:
        for path, samples in parts.items():
            witnesses[path] = witness = _Witness(samples, fetch(module, path).forward, [])
            _let_run(fetch(module, path), witness.run, stack)
        if exact is None:
            results = call_in_modes(module, lambda: copied_values(sample.inputs))
        else:
            results = [_called(module, sample.inputs, exact)]
    errors = {path: witness.error(len(results)) for path, witness in witnesses.items()}
    own = max(_difference(sample.result, result) for result in results)
    return {**errors, "": own}


@contextmanager
def _standing_in(module: nn.Module, inner: Mapping[str, Sample]) -> Iterator[list[float]]:
    """Let parts of a module return what they did; collects the errors of what they are given."""
    errors: list[float] = []
    with ExitStack() as stack:
        for path, sample in inner.items():
            _let_run(fetch(module, path), _Replay(sample, errors).run, stack)
        yield errors


def _let_run(part: nn.Module, forward: Callable[..., Any], stack: ExitStack) -> None:
    """Let a module run something else until a stack of contexts closes."""
    before = dict(vars(part))
    stack.callback(vars(part).update, before)
    stack.callback(vars(part).pop, "forward")
    vars(part)["forward"] = forward


@dataclass(frozen=True)
class _Replay:
    """Stands in for a part, by its bound method: what a closure holds would be put back."""

    sample: Sample
    errors: list[float]

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the part did, and note how far what it is given is from what it was."""
        self.errors.append(_difference(self.sample.inputs, (args, kwargs)))
        return copied_values(self.sample.result)


@dataclass(frozen=True)
class _Witness:
    """Lets a part run, and remembers how far each call is from its sample."""

    samples: Sequence[Sample]
    forward: Callable[..., Any]
    errors: list[float]

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the part returns."""
        sample = self.samples[len(self.errors) % len(self.samples)]
        given = _difference(sample.inputs, (args, kwargs))
        result = self.forward(*args, **kwargs)
        self.errors.append(max(given, _difference(sample.result, result)))
        return result

    def error(self, runs: int) -> float:
        """The largest relative difference from the samples after some runs of all their calls."""
        return max(self.errors) if len(self.errors) == runs * len(self.samples) else inf


def error_of_rounding(module: nn.Module, sample: Sample, exact: Mapping[int, Tensor]) -> float:
    """How far what a module returns is from itself after its inputs were rounded once more."""
    generator = torch.Generator("cpu").manual_seed(0)

    def rounded(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        signs = torch.randint(-1, 2, value.shape, generator=generator).to(value)
        return value * (1 + _ROUNDING * signs)

    result = _called(module, sample.inputs, exact)
    after_rounding = _called(module, tree_map(rounded, sample.inputs), exact)
    return _difference(result, after_rounding)


def _called(
    module: nn.Module,
    inputs: tuple[Any, Any],
    exact: Mapping[int, Tensor],
    without: Collection[str] = (),
) -> Any:
    """What a module returns in float64, for inputs of which it gets a copy."""
    args, kwargs = copied_values(inputs)
    with random_numbers_kept(), torch.no_grad():
        return call_exact(module, args, kwargs, exact, without)


def _difference(before: Any, after: Any) -> float:
    """The largest relative difference of any tensor; infinite if they are built in another way."""
    # Made anew, a `torch.Size` is a tuple: a graph that builds what is returned knows no other.
    anew = (tree_map(lambda leaf: leaf, structure) for structure in (before, after))
    (expected, layout), (actual, other) = map(tree_flatten, anew)
    if layout != other or list(map(_kind, expected)) != list(map(_kind, actual)):
        return inf
    pairs = [pair for pair in zip(actual, expected, strict=True) if isinstance(pair[0], Tensor)]
    # The user's code may be running: what is compared is no part of it.
    with torch.no_grad(), _disable_current_modes():
        return max((relative_error(*pair) for pair in pairs), default=0.0)


def _kind(leaf: Any) -> Any:
    """What a leaf has to be: a tensor of some shape, or that very constant."""
    return leaf.shape if isinstance(leaf, Tensor) else (type(leaf), leaf)
