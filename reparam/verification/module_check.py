"""Check that modules with new parts or new code return what they returned before.

A region may change what a module inside it returns: a scale moves out of it, say. What holds the
whole of its regions returns the same. Where no code changes, since every operator of a region only
becomes another one in its place, there is nothing to run: the region itself was compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import inf
from types import NoneType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from reparam.algebra.lowering import lower
from reparam.analysis.parts import Part
from reparam.capture.structures import filled, nodes_in
from reparam.capture.trace import Call
from reparam.modules.float64 import call_exact, copied, in_float64
from reparam.modules.tree import fetch
from reparam.planning.planned_parts import PlannedPart
from reparam.planning.regions import Region
from reparam.rewriting.changes import Rewrite, unedited
from reparam.rewriting.graft import Grafted
from reparam.rewriting.new_code import GraftError
from reparam.rewriting.placement import Placer, frame_of
from reparam.rewriting.rewriter import changed_calls
from reparam.verification.model_check import relative_error
from reparam.verification.random_runs import execute, is_known, may_run, random_inputs, runs_alone


class MismatchError(GraftError):
    """A module with new code returns something else than it did."""


class Check:
    """Remembers what the modules around the regions of a part return.

    Args:
        planned: The part; its modules are not changed yet.
    """

    def __init__(self, planned: PlannedPart) -> None:
        self.planned = planned
        self.part = part = planned.part
        self.regions = planned.decision.regions
        self.frames = {region.value: frame_of(part.trace, region) for region in self.regions}
        self.times = Counter(id(call.module) for call in part.trace.calls)
        changing = [self.frames[region.value] for region in self._changing()]
        wanted = {call for frame in changing for call in frame.ancestry()}
        self.samples = sample_calls(part, wanted) if wanted else {}

    def _changing(self) -> list[Region]:
        """The regions for which code has to change."""
        regions = self.regions
        if any(map(_may_stay_in_place, regions)):
            trace, merged = self.part.trace, self.planned.merged
            placer = Placer(trace, self.part.facts, unedited(trace), merged)
            regions = [region for region in regions if changed_calls(placer, region)]
        return regions

    def run(self, grafted: Grafted, rewritten: Rewrite, root: nn.Module) -> int:
        """Run every module that changed and compare.

        Args:
            grafted: What was done to the modules.
            rewritten: What was changed.
            root: The changed root of the part.

        Returns:
            How many could not be compared.

        Raises:
            MismatchError: If one returns something else.
        """
        skipped = 0
        closed = self._closed(grafted, rewritten, root)
        able = {call for call in closed if call in self.samples and may_run(fetch(root, call.path))}
        for call in self.part.trace.calls:
            if call in able:
                skipped += self._differs(call, able, rewritten, root)
        return skipped + len(closed - able)

    def _differs(self, call: Call, able: Set[Call], rewritten: Rewrite, root: nn.Module) -> bool:
        """Whether a module cannot be compared since it is chaotic: rounding changes its result.

        Raises:
            MismatchError: If it is not, and returns something else.
        """
        module, sample = fetch(root, call.path), self.samples[call]
        inner = self._inner(call, able)
        try:
            exact = self._weights(call, rewritten, inner)
            error = module_error(module, sample, exact, inner)
            if not error <= MODULE_BOUND and inner:  # it may use more of its parts than it calls
                exact = self._weights(call, rewritten, ())
                error = module_error(module, sample, exact)
        except Exception as problem:  # the new code does not run
            reason = f"its new code raises {type(problem).__name__}: {problem}"
            raise MismatchError(f"{call.path or 'the model'}: {reason}", [call]) from problem
        if error <= MODULE_BOUND:
            return False
        if is_chaotic(module, sample, exact):
            return True
        reason = f"with its new code it returns something else, by {error:.1e}"
        raise MismatchError(f"{call.path or 'the model'}: {reason}", [call])

    def _inner(self, call: Call, able: Set[Call]) -> dict[str, Sample]:
        """The samples of the modules inside one that are compared by themselves, by path in it."""
        prefix = f"{call.path}." if call.path else ""
        found: dict[str, Sample] = {}
        for inner in able:
            if inner is call or self.times[id(inner.module)] > 1:
                continue
            around = list(inner.ancestry())[1:]
            if call in around and able.isdisjoint(around[: around.index(call)]):
                found[inner.path.removeprefix(prefix)] = self.samples[inner]
        return found

    def _closed(self, grafted: Grafted, rewritten: Rewrite, root: nn.Module) -> set[Call]:
        """The modules that regions lie in, but for those that a region outside changes too.

        Raises:
            MismatchError: If an operator is not where it should be.
        """
        homes = {value: grafted.home(frame) for value, frame in self.frames.items()}
        closed = set[Call]()
        for region in self.regions:
            home = homes[region.value]
            if rewritten.changes[region.value] or not _may_stay_in_place(region):
                closed.add(home)
            elif not _is_in_place(region, rewritten, root):
                reason = "with its new parts it returns something else"
                raise MismatchError(f"{home.path or 'the model'}: {reason}", [home])
        for region in self.regions:
            nodes = [region.value, *region.dying]
            touched = {self.part.trace.caller[node] for node in nodes}
            # What nobody reads may be another value than it was.
            inner_values = (region.dying | {region.value}) - {region.kept}
            closed = {
                call
                for call in closed
                if inner_values.isdisjoint(nodes_in((call.args, call.kwargs, call.result)))
            }
            for call in touched | rewritten.changes[region.value]:
                for inner in call.ancestry():
                    if inner is homes[region.value]:
                        break
                    closed.discard(inner)
        return closed

    def _weights(
        self, call: Call, rewritten: Rewrite, without: Collection[str]
    ) -> dict[str, Tensor]:
        """The new weights inside a module before they were rounded, but for those in some parts."""
        prefix = f"{call.path}." if call.path else ""
        left_out = tuple(f"{prefix}{path}." for path in without)
        exact: dict[str, Tensor] = {}
        for region in self.regions:
            path, form = rewritten.names[region.value], region.form
            if path.startswith(prefix) and not path.startswith(left_out):
                device = None if form.like is None else form.like.device
                module = lower(form, *form.weights.evaluate(device))
                for name, parameter in module.named_parameters():
                    exact[f"{path[len(prefix) :]}.{name}"] = parameter
        return exact


def _may_stay_in_place(region: Region) -> bool:
    """Whether a region is a chain of modules."""
    return all(node.op == "call_module" for node in (region.value, *region.dying))


def _is_in_place(region: Region, rewritten: Rewrite, root: nn.Module) -> bool:
    """Whether the new operator is where one of a chain was, and nothing where the others were."""
    new = rewritten.names[region.value]
    operators = set(rewritten.names.values())  # another region's may be where one of this was
    others = {str(node.target) for node in (region.value, *region.dying)} - operators
    return fetch(root, new) is rewritten.modules[new] and all(
        type(fetch(root, path)) in (nn.Identity, NoneType) for path in others
    )


MODULE_BOUND = 1e-6

"""Largest relative difference of a module, in float64; regions have a bound near rounding."""


@dataclass(frozen=True)
class Sample:
    """What one call was given and what it returned."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


def sample_calls(part: Part, calls: Collection[Call]) -> dict[Call, Sample]:
    """Run the graph of a part on a random input and keep what some calls got and returned.

    Args:
        part: The part; its modules are not changed yet.
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
                execute(node, values, read, part)
        for call in ending.get(node, ()):
            # Nothing in it may be unknown, even what does not reach its result.
            complete = all(n in values or n in sources for n in inside[call])
            if call in given and complete and is_known(call.result, values, part):
                result = copied(filled(call.result, read))
                if _is_usual(result):
                    args, kwargs = given[call]
                    samples[call] = Sample(args, kwargs, result)
    return samples


def _is_usual(result: Any) -> bool:
    """Whether a result neither overflows nor all but vanishes, where float64 has fewer digits."""
    tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    largest = [float(t.abs().max()) for t in tensors if t.is_floating_point() and t.numel()]
    return bool(tensors) and all(not one or _FAINT < one < inf for one in largest)


_FAINT = 1e-290

"""Values near the smallest that float64 holds have fewer digits."""

_ROUNDING = 2.0**-52

"""One unit in the last place of 1, in float64."""
