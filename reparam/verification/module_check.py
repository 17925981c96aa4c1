"""Check that modules with new parts or new code return what they returned before.

A region may change what a module inside it returns: a scale moves out of it, say. What holds the
whole of its regions returns the same. Where no code changes, since every operator of a region only
becomes another one in its place, there is nothing to run: the region itself was compared.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from functools import cache
from math import inf
from types import NoneType

from torch import Tensor, nn

from reparam.algebra import lower
from reparam.capture import Call, WayIn, nodes_in
from reparam.modules import fetch
from reparam.planning import PlannedPart, Region
from reparam.rewriting import GraftError, Rewrite, frame_of
from reparam.verification.call_samples import (
    Sample,
    error_of_rounding,
    errors_in_one_run,
    module_error,
    original_errors,
    sample_calls,
)
from reparam.verification.random_runs import may_run

MODULE_BOUND = 1e-6
"""Largest relative difference of a module, in float64; regions have a bound near rounding."""


_RUN_AS_A_WHOLE = 2**29
"""A module of at most so many bytes in float64 runs as a whole; a larger one in its parts."""


class MismatchError(GraftError):
    """A module with new code returns something else than it did."""


class MisreadError(GraftError):
    """A module's own code does something else than what was traced of it."""


class Check:
    """Compares the modules of a part before and after they change.

    Made before the modules are changed, it runs the graph as it was and keeps a sample of every
    call. `run_originals` gives the user's own modules the same, which must return the same; `run`
    does so once they have their new code.
    """

    def __init__(self, planned: PlannedPart, rewritten: Rewrite) -> None:
        self.part = part = planned.part
        self.rewritten = rewritten
        self.regions = planned.decision.regions
        self.frames = {region.value: frame_of(part.trace, region) for region in self.regions}
        self.times = Counter(id(call.module) for call in part.trace.calls)
        self.samples = sample_calls(part, part.trace.calls) if self.regions else {}
        self.refused: dict[Call, str] = {}
        """What the own code of modules raised: for a `split` in two a sample may be too large."""

    def run_originals(self) -> list[Call]:
        """Run every module that is to change as it is, and compare it with its graph.

        Returns:
            The calls that could not be compared.

        Raises:
            MisreadError: If one does something else: tracing has misunderstood its code.
        """
        changing = {call for calls in self.rewritten.changes.values() for call in calls}
        asked = {*self.frames.values(), *changing}
        asked = {call for call in asked if not _is_of_torch(call.module)}
        able = {call for call in self.samples if may_run(call.module)}
        agreeing = self._agreeing(
            asked & able,
            able,
            lambda outer, parts: errors_in_one_run(outer.module, self.samples[outer], parts),
        )
        return [
            call
            for call in asked - agreeing
            if call not in able or not self._agrees(call, self._inner(call, able))
        ]

    def _agrees(self, call: Call, inner: Mapping[str, Sample]) -> bool:
        """Whether a module does what was traced of it; False where that cannot be told.

        Raises:
            MisreadError: If it does something else.
        """
        module, sample = call.module, self.samples[call]
        try:
            error, spread = original_errors(module, sample, inner)
        except Exception as problem:  # it does not run in float64, or not on this input
            self.refused[call] = repr(problem)
            return False
        if max(error, spread) <= MODULE_BOUND:
            return True
        if spread > MODULE_BOUND:
            reason = "its own code returned something else when it ran again"
        elif error < inf and error_of_rounding(module, sample, {}) > MODULE_BOUND:
            return False
        else:
            reason = "its own code returned something else than was traced of it"
        raise MisreadError(f"{call.path or 'the model'}: {reason}", [call])

    def run(self, gone: Set[Call], root: nn.Module) -> list[Call]:
        """Run every module that changed, and compare; those of calls that are gone are no more.

        Returns:
            The calls that could not be compared.

        Raises:
            MismatchError: If one returns something else.
        """
        closed = self._closed(gone, root)
        able = {call for call in closed if call in self.samples and may_run(fetch(root, call.path))}
        agreeing = self._agreeing(
            able,
            able,
            lambda outer, parts: errors_in_one_run(
                fetch(root, outer.path),
                self.samples[outer],
                parts,
                self._weights(outer, root, ()),
            ),
        )
        calls = [call for call in self.part.trace.calls if call in able - agreeing]
        skipped = [call for call in calls if self._is_chaotic(call, able, root)]
        for way in self.part.trace.ways_in:
            if way.owner in able and way.call in self.samples:
                skipped += [way.owner] if self._is_other_way_chaotic(way, root) else []
        return [*skipped, *(closed - able)]

    def _agreeing(
        self,
        calls: Set[Call],
        able: Set[Call],
        errors: Callable[[Call, Mapping[str, Sequence[Sample]]], Mapping[str, float]],
    ) -> set[Call]:
        """Those of some calls that return what they did when all around them runs.

        The outermost modules that hold them run, each once: to run each call by itself takes
        several times as long, and tells what is wrong with those that are not among these.

        Args:
            calls: The calls.
            able: The modules that can run.
            errors: Runs a call, with samples of what is called in it by path: the errors by path.
        """
        small = cache(lambda call: _size_in_float64(call.module) <= _RUN_AS_A_WHOLE)
        groups: dict[Call, list[Call]] = defaultdict(list)
        for call in self.part.trace.calls:
            around = [outer for outer in call.ancestry() if outer in able and small(outer)]
            if call in calls and around:
                groups[around[-1]].append(call)
        agreeing = set[Call]()
        for outer, inside in groups.items():
            prefix = f"{outer.path}." if outer.path else ""
            paths = {call: call.path.removeprefix(prefix) for call in inside if call is not outer}
            samples: dict[str, list[Sample]] = defaultdict(list)
            for call, path in paths.items():
                samples[path].append(self.samples[call])
            try:
                found = errors(outer, samples)
            except Exception:  # what that means is asked of each
                continue
            paths[outer] = ""
            agreeing |= {call for call in inside if found[paths[call]] <= MODULE_BOUND}
        return agreeing

    def _stays_in_place(self, region: Region) -> bool:
        """Whether a region is a chain of modules for which no code changes."""
        chain = all(node.op == "call_module" for node in (region.value, *region.dying))
        # What lacks a weight or a scale, and its readers with it, are right together.
        return chain and not region.unscaled and not self.rewritten.changes[region.value]

    def _is_chaotic(self, call: Call, able: Set[Call], root: nn.Module) -> bool:
        """Whether a module cannot be compared since it is chaotic: rounding changes its result.

        Nor can one be that refuses its sample in the words in which it did so before.

        Raises:
            MismatchError: If it can be, and returns something else.
        """
        module, sample = fetch(root, call.path), self.samples[call]
        inner = self._inner(call, able)
        try:
            exact = self._weights(call, root, inner)
            error = module_error(module, sample, exact, inner)
            if not error <= MODULE_BOUND and inner:  # it may use more of its parts than it calls
                exact = self._weights(call, root, ())
                error = module_error(module, sample, exact)
        except Exception as problem:  # the new code does not run
            if self.refused.get(call) == repr(problem):  # no more than the code before it did
                return True
            reason = f"its new code raises {type(problem).__name__}: {problem}"
            raise MismatchError(f"{call.path or 'the model'}: {reason}", [call]) from problem
        if error <= MODULE_BOUND:
            return False
        if error_of_rounding(module, sample, exact) > MODULE_BOUND:
            return True
        reason = f"with its new code it returns something else, by {error:.1e}"
        raise MismatchError(f"{call.path or 'the model'}: {reason}", [call])

    def _is_other_way_chaotic(self, way: WayIn, root: nn.Module) -> bool:
        """The same of a method that has new code; False of one that has none."""
        attributes = vars(fetch(root, way.call.path))
        if not attributes.keys() >= {way.name, "forward"}:
            return False
        forward = attributes["forward"]
        attributes["forward"] = attributes[way.name]
        try:
            return self._is_chaotic(way.call, set(), root)
        except MismatchError as problem:
            raise MismatchError(problem.reason, [way.owner]) from problem
        finally:
            attributes["forward"] = forward

    def _inner(self, call: Call, able: Set[Call]) -> dict[str, Sample]:
        """The samples of the modules inside one that are compared by themselves, by path in it."""
        prefix = f"{call.path}." if call.path else ""
        samples: dict[str, Sample] = {}
        for inner in able:
            if inner is call or self.times[id(inner.module)] > 1:
                continue
            around = list(inner.ancestry())[1:]
            if call in around and able.isdisjoint(around[: around.index(call)]):
                samples[inner.path.removeprefix(prefix)] = self.samples[inner]
        return samples

    def _closed(self, gone: Set[Call], root: nn.Module) -> set[Call]:
        """The modules that regions lie in, but for those that a region outside changes too.

        Raises:
            MismatchError: If an operator is not where it should be.
        """
        homes = {
            value: next(call for call in frame.ancestry() if call not in gone)
            for value, frame in self.frames.items()
        }
        closed = set[Call]()
        for region in self.regions:
            home = homes[region.value]
            if not self._stays_in_place(region):
                closed.add(home)
                continue
            closed.update(self._that_may_look(region, home))
            if not _is_in_place(region, self.rewritten, root):
                reason = "with its new parts it returns something else"
                raise MismatchError(f"{home.path or 'the model'}: {reason}", [home])
        for region in self.regions:
            nodes = [region.value, *region.dying]
            touched = {self.part.trace.caller[node] for node in nodes}
            # What nobody reads may be another value than it was.
            inner_values = (region.dying | {region.value}) - {region.kept} | region.unscaled
            closed = {
                call
                for call in closed
                if inner_values.isdisjoint(nodes_in((call.args, call.kwargs, call.result)))
            }
            for call in touched | self.rewritten.changes[region.value]:
                for inner in call.ancestry():
                    if inner is homes[region.value]:
                        break
                    closed.discard(inner)
        return closed

    def _that_may_look(self, region: Region, home: Call) -> set[Call]:
        """What holds a region and may look at the operators that it replaces where they were."""
        looking = self.part.trace.onlookers.perhaps
        nodes = (node for node in (region.value, *region.dying) if node.op == "call_module")
        around = {call for node in nodes for call in self.part.trace.caller[node].ancestry()}
        if looking.isdisjoint(id(call.module) for call in around):
            return set()
        outside = [call for call in home.ancestry() if id(call.module) in looking]
        return {home, *outside[-1:]}

    def _weights(self, call: Call, root: nn.Module, without: Collection[str]) -> dict[int, Tensor]:
        """What the new weights in a module were before they were rounded, by the identity of these.

        Those of the parts at some paths in it are left out.
        """
        prefix = f"{call.path}." if call.path else ""
        left_out = tuple(f"{prefix}{path}." for path in without)
        exact: dict[int, Tensor] = {}
        for region in self.regions:
            path, form = self.rewritten.names[region.value], region.form
            if path.startswith(prefix) and not path.startswith(left_out):
                device = None if form.like is None else form.like.device
                module = lower(form, *form.weights.evaluate(device), region.norm)
                for name, parameter in module.named_parameters():
                    exact[id(fetch(root, f"{path}.{name}"))] = parameter
        return exact


def _size_in_float64(module: nn.Module) -> int:
    """The bytes that a module's tensors take in float64."""
    return sum(8 * tensor.numel() for tensor in (*module.parameters(), *module.buffers()))


def _is_of_torch(module: nn.Module) -> bool:
    """Whether a module runs torch's own code, which nobody has to ask twice."""
    return type(module).__module__.startswith("torch.nn.") and "forward" not in vars(module)


def _is_in_place(region: Region, rewritten: Rewrite, root: nn.Module) -> bool:
    """Whether the new operator is where one of a chain was, and nothing where the others were.

    What a scale moved across stays where it is.
    """
    new = rewritten.names[region.value]
    operators = set(rewritten.names.values())  # another region's may be where one of this was
    crossed = {node for link in region.links if link.form is None for node in link.nodes}
    gone = {region.value, *region.dying} - crossed
    others = {str(node.target) for node in gone} - operators
    return fetch(root, new) is rewritten.modules[new] and all(
        isinstance(fetch(root, path), nn.Identity | NoneType) for path in others
    )
