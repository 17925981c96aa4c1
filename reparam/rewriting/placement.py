"""Where the operator of a region belongs: whose code names it, and what must not change."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from itertools import islice

from torch import fx, nn
from torch.nn.utils import parametrize

from reparam.algebra import explicit_padding
from reparam.analysis import Facts
from reparam.capture import (
    Call,
    Trace,
    calls_between,
    common_caller,
    knows_only_tensors,
    may_run_otherwise,
    nodes_in,
    reached,
)
from reparam.capture.reading import (
    CallSites,
    methods_naming,
    methods_running,
    own_methods,
    runs_as_one,
    runs_by_name,
)
from reparam.modules import fetch, has_hooks, held_aside, read_from
from reparam.planning import FoldedNorm, Link, Region
from reparam.rewriting.changes import Rewrite
from reparam.rewriting.ranks_told import rests_on_rank
from reparam.rewriting.repeats import repeated_calls


@dataclass(frozen=True)
class Placement:
    """Where the operator of a region belongs.

    Args:
        frame: The innermost call that all of the region lies in.
        owner: The call whose code names the new operator.
        writer: The call into whose own code the region is written, while its parts stay what they
            are; None if modules may change where they are registered.
        kept: Names of the parts of the writer that other code runs by themselves.
        swaps: The values of its links that are modules which may be replaced where they are
            registered, so that no code has to change: one by the operator, the others by nothing.
        other_ways: Whether methods besides ``forward`` run these modules, too.
    """

    frame: Call
    owner: Call
    writer: Call | None = None
    kept: frozenset[str] = frozenset()
    swaps: frozenset[fx.Node] = frozenset()
    other_ways: bool = False


class Placer:
    """Finds the place of every region of one trace."""

    def __init__(self, facts: Facts, result: Rewrite, merged: Collection[Call]) -> None:
        self.trace = trace = result.trace
        self.facts = facts
        self.result = result
        self.merged = merged
        self.uses = Counter(
            id(fetch(trace.root, str(node.target)))
            for node in trace.graph.nodes
            if node.op == "call_module"
        )
        self.nodes: dict[Call, set[fx.Node]] = defaultdict(set)
        for node, caller in trace.caller.items():
            if node.op.startswith("call_") and node not in facts.sources:
                for call in caller.ancestry():
                    self.nodes[call].add(node)
        self.traced_through = Counter(id(call.module) for call in trace.calls)
        self.repeated = repeated_calls(trace)
        self.held = held_aside(trace.root)
        self.sites = sites_of_calls()
        self.folds: dict[FoldedNorm | None, set[fx.Node]] = {}
        self.read_directly = {
            id(read_from(trace.root, str(node.target)))
            for node in trace.graph.nodes
            if node.op == "get_attr"
        }

    def placement(self, region: Region) -> Placement:
        """Where the operator of a region belongs."""
        around = frame_of(self.trace, region)
        frame = around if region.collapses else self.trace.caller[region.value]
        frame = next(call for call in frame.ancestry() if call not in self.merged)
        whole = common_caller([frame, around, *self._span(region)])
        if not region.collapses:
            owner = self._that_may_grow(self._that_sees(region))
            kept = self._parts_to_keep(region, whole, frozenset())
            if kept is None and knows_only_tensors(whole):
                return Placement(frame, owner)
            return self._kept_in(whole, kept or set(), frame, owner)
        if not knows_only_tensors(whole):
            # Called otherwise, its parts may get values that do not depend on the base like this.
            frame = whole
        swaps = self._swaps(region)
        kept = self._parts_to_keep(region, frame, swaps)
        if kept is not None:
            return self._kept_in(frame, kept, frame, self._that_may_grow(frame))
        owner, use = self._that_sees(region), self._use(region, frame)
        if self._may_go_another_way(region, whole) and (
            bool(whole.handed) or not self._run_as_one(use, region, swaps)
        ):
            swaps = set()  # code that stays as it is might run some of them without the others
        if region.main.value not in swaps:
            owner = self._that_may_grow(owner)
        if not region.mains <= swaps:
            # Beside a container that somebody runs by itself: it has to stay what it was.
            left = calls_between(frame, self._that_may_grow(frame))
            if any(self.trace.by_methods.get(id(call.module)) for call in left):
                return self._kept_in(frame, set(use.parts), frame, self._that_may_grow(frame))
        other_ways = bool(use.callers)
        return Placement(frame, owner, swaps=frozenset(swaps), other_ways=other_ways)

    def _swaps(self, region: Region) -> set[fx.Node]:
        """The values of a region's links that are modules which may be replaced in their place.

        The regions of one norm, which are edited one after the other, agree: with a norm without
        its weight stand the readers that have it, also for code that stays as it was.
        """
        if region.folded in self.folds:
            return self.folds[region.folded]
        swaps = {link.value for link in region.changing if self._may_swap(link, region)}
        if self._is_seen(region):
            swaps = set()
        swaps -= self._in_code(region)
        if region.folded is not None:
            swaps = swaps if region.mains <= swaps else set()
            self.folds[region.folded] = swaps
        return swaps

    def _is_seen(self, region: Region) -> bool:
        """Whether code that would stay as it is sees that some operators become identities."""
        inner = {id(call.module) for call in self._around(region)}
        return not inner.isdisjoint(self._looking(region) | self.trace.onlookers.telling_apart)

    def _around(self, region: Region) -> set[Call]:
        """The calls in which a region's operators lie, and those around these in its frame."""
        outside = set(islice(frame_of(self.trace, region).ancestry(), 1, None))
        callers = (self.trace.caller[link.value] for link in region.changing)
        return {call for caller in callers for call in caller.ancestry()} - outside

    def _looking(self, region: Region) -> set[int]:
        """Identities of the modules whose code asks what modules are that change with a region."""
        nodes = (link.value for link in region.changing if link.value.op == "call_module")
        modules = (fetch(self.trace.root, str(node.target)) for node in nodes)
        return set[int]().union(*map(self.trace.onlookers.of, modules))

    def _in_code(self, region: Region) -> set[fx.Node]:
        """The places where code must make floats of what a new operator reads, or check it."""
        if region.folded is None:
            asks = region.converts or self.facts.rests_on_granted(region.own)
            return {region.main.value} if asks else set()
        mains, paths = region.folded.mains, region.folded.paths
        nodes = [{node for link in path for node in link.nodes} for path in paths]
        nodes[0] |= region.folded.bare
        pairs = zip(mains, nodes, strict=True)
        return {main for main, inner in pairs if self.facts.rests_on_granted(inner)}

    def _kept_in(self, holder: Call, kept: Set[str], frame: Call, owner: Call) -> Placement:
        """A place that leaves some parts of a call's module what they are."""
        writer = self._that_may_grow(holder)
        moved = list(calls_between(holder, writer))
        if kept and moved:  # they are kept by keeping what holds them there
            kept = {_name_in(writer, moved[-1].path)}
        return Placement(frame, owner, writer, frozenset(kept))

    def _that_sees(self, region: Region) -> Call:
        """The innermost call around a region's operator whose own code can name what it reads."""
        main, source = region.main, self.result.current(region.source)
        place = main.value if region.collapses else region.value
        replaced = [node for node in main.inner if node in region.dying or node is place]
        common = common_caller([self.trace.caller[node] for node in replaced])
        return next(call for call in common.ancestry() if self._sees(call, source))

    def _that_may_grow(self, call: Call) -> Call:
        """The innermost call around one that may have a new part."""
        # A part more would change how a container runs, and other calls want a block as it was.
        containers = nn.Sequential | nn.ModuleList | nn.ModuleDict
        return next(
            outer
            for outer in call.ancestry()
            if outer.parent is None
            or not (isinstance(outer.module, containers) or self._serves_others(outer))
        )

    def _span(self, region: Region) -> set[Call]:
        """The calls through which a region's value depends on its base, dying or not."""
        facts, ends = self.facts, [region.value, *(absorbed.term for absorbed in region.absorbed)]
        read = [region.base, *(scale.link.base for scale in region.gathered)]
        first = min(facts.order[node] for node in read)
        if region.folded is not None:  # from what the norm reads to all that reads the norm
            ends, first = [*ends, *region.together], facts.order[region.folded.base]
        above = reached(
            ends, lambda node: facts.operands(node) if facts.order[node] > first else ()
        )
        return {self.trace.caller[node] for node in above if facts.order[node] > first}

    def _may_go_another_way(self, region: Region, whole: Call) -> bool:
        """Whether the numbers in some weight decide which of a region's operators run."""
        joined = region.together.union(*(link.inner for link in region.changing))
        crossed = {*self._span(region), *(self.trace.caller[node] for node in joined)}
        around = {call for inner in crossed for call in calls_between(inner, whole)}
        return any(call.deciding for call in (whole, *around))

    def _parts_to_keep(self, region: Region, frame: Call, swaps: Set[fx.Node]) -> set[str] | None:
        """The parts of a module that must stay what they are; None if they run all or nothing.

        A method that runs some of a region, ``forward_features`` say, must go on finding those
        parts as they were.
        """
        working = _working(region)
        if self._looking(region) - {id(call.module) for call in self._around(region)}:
            return set(self._use(region, frame).parts)  # code outside asks what they are
        if len(working) == 1 and working <= swaps and not explicit_padding(region.form):
            return None  # a module becomes another one, which whoever calls it finds the same
        use = self._use(region, frame)
        names = set(use.parts)
        # With other arguments the code as it was runs, and calls them.
        if names and not knows_only_tensors(frame) and not self._run_as_one(use, region, swaps):
            return names
        # A method that only reads the weights of what is gone, to convert them say, will raise.
        needed = use.callers or use.serves or self._may_run(frame, use.methods)
        if use.serves or self._runs_apart(use, frame, region, swaps):
            return names if needed else set()
        # Where several mix channels, a part would return others, or another size, than it did. One
        # that does not collapse changes no part: it goes, or it stays.
        mixes = any(len(self._mixing(path)) > 1 for path in region.paths)
        # Where code has to change, that of a method which `forward` does not call does not.
        in_code = bool(use.callers) and not _working(region) <= swaps
        return names if region.collapses and (mixes or in_code) and needed else None

    def _mixing(self, path: Sequence[Link]) -> set[Call]:
        """The calls in which the operators of a path are that mix channels."""
        mixing = (link for link in path if link.form is not None and not link.form.diagonal)
        return {self.trace.caller[link.value] for link in mixing}

    def _run_as_one(self, use: _Use, region: Region, swaps: Set[fx.Node]) -> bool:
        """Whether all code that runs a region's modules does so in turn, whichever way it takes."""
        return (
            _working(region) <= swaps
            and not rests_on_rank(region, self.facts)
            and region.base not in self.facts.ones
            and not explicit_padding(region.form)
            and not use.in_code
            and not any(map(may_run_otherwise, use.crossed))
            and "forward" not in vars(use.module)
            and all(runs_as_one(use.module, method, use.parts) for method in use.methods)
            and runs_by_name(use.module, use.parts)
        )

    def _use(self, region: Region, frame: Call) -> _Use:
        """Who runs the operators of a region in the module that holds it."""
        links = [link for link in region.changing if link.form and not link.form.identity]
        joined = region.together.union(*(link.inner for link in links))
        prefix = f"{frame.path}." if frame.path else ""
        names: dict[str, None] = {}
        parts: set[int] = set()
        crossed: dict[Call, None] = {}
        in_code = False
        for node in sorted(joined, key=self.facts.order.__getitem__):
            caller = self.trace.caller[node]
            crossed.update(dict.fromkeys(calls_between(caller, frame)))
            path = caller.path
            if node.op == "call_module":
                path = str(node.target)
                parts.add(id(fetch(self.trace.root, path)))
            elif caller is frame:
                in_code |= node not in self.facts.sources
                names.update(dict.fromkeys(self._holding(node, frame)))
                continue
            elif caller.parent is frame:
                in_code |= self._goes(node, joined, region)
            if path.startswith(prefix):
                names[_name_in(frame, path)] = None
        methods = methods_naming(frame.module, set(names))
        if not in_code and region.main.value.op == "call_module":
            kept = _name_in(frame, str(region.main.value.target))
            if region.folded is not None:  # all of them stay where they are
                kept = ""
            gone = self._reading_what_goes(frame, methods, kept)
            methods = {name: used for name, used in methods.items() if name not in gone}
        parts.update(id(call.module) for call in crossed)
        callers = {method for part in parts for method in self.trace.by_methods.get(part, ())}
        # Some part has calls that want it as it was: so may a user who calls it alone.
        repeated = (call for call in (*crossed, *frame.ancestry()) if call in self.repeated)
        serves = self._serves_others(next(repeated, frame))
        return _Use(frame.module, list(names), in_code, tuple(crossed), methods, callers, serves)

    def _holding(self, node: fx.Node, frame: Call) -> list[str]:
        """Names of the parts of a module with whose tensors an operator of its code computes."""
        read = (self.facts.sources.get(n, ()) for n in (node, *node.all_input_nodes))
        prefix = f"{frame.path}." if frame.path else ""
        used = sorted(path for paths in read for path in paths if path.startswith(prefix))
        return [_name_in(frame, path) for path in used]

    def _goes(self, node: fx.Node, joined: Set[fx.Node], region: Region) -> bool:
        """Whether the code around an operator becomes part of one elsewhere, so that none is left.

        A method that calls the module would find nothing there.
        """
        around = self.nodes[self.trace.caller[node]]
        return node in around and region.main.value not in around and around <= joined

    def _runs_apart(self, use: _Use, frame: Call, region: Region, swaps: Set[fx.Node]) -> bool:
        """Whether a method may run, or return, some of a region without the rest."""
        methods, names = use.methods, set(use.parts)
        if any(used != names for used in methods.values()) and methods.keys() != {"forward"}:
            return True
        if use.in_code and any(n != "forward" and not n.startswith("_") for n in methods):
            return True
        running = methods_running(frame.module, methods) if use.callers else ()
        # Where an operator rests on that, no method gets new code: see `Slicer.run_by`.
        by_rank = rests_on_rank(region, self.facts) and not _working(region) <= swaps
        bound = bool(use.callers) and (region.base in self.facts.ones or by_rank)
        return any(
            holder != id(frame.module)
            or name not in running
            # One that only reads the weights, to convert them say, does not count.
            or (name in methods and (bound or not runs_as_one(frame.module, name, use.parts)))
            for holder, name in use.callers
        )

    def _reading_what_goes(
        self, frame: Call, methods: Mapping[str, set[str]], kept: str
    ) -> set[str]:
        """The methods that read the weights of parts that become nothing, and run none.

        Such a method raises afterwards, wherever the new operator is: one that initialises the last
        norm of a residual block is no reason to give the block new code.
        """
        functions = own_methods(type(frame.module))
        return {
            name
            for name, used in methods.items()
            if name != "forward"
            and kept not in used
            and not self.sites(frame).may_call(functions[name], frame.module)
        }

    def _may_run(self, frame: Call, methods: Collection[str]) -> bool:
        """Whether methods, or what a user calls and calls them, may run parts unseen."""
        functions = own_methods(type(frame.module))
        return any(
            self.sites(frame).may_call(functions[name], frame.module)
            for name in methods_running(frame.module, methods) & functions.keys() - {"forward"}
            if not name.startswith("_") or name.endswith("__")
        )

    def _serves_others(self, call: Call) -> bool:
        """Whether other calls of the same module want it as it was."""
        return call in self.repeated and id(call.module) not in self.result.alike

    def _may_swap(self, link: Link, region: Region) -> bool:
        """Whether a link is a module that may be replaced where it is registered."""
        node = link.value
        scales = any(scale is link for scale in region.scales)
        if (
            len(link.inner) != 1
            or node.op != "call_module"
            or (node in region.shared and not scales)
        ):
            return False
        old, caller = fetch(self.trace.root, str(node.target)), self.trace.caller[node]
        reader = self.result.copy(node)
        return (
            self.uses[id(old)] == self.traced_through[id(caller.module)]
            and reader.args == (self.result.current(link.base),)
            and not reader.kwargs
            and not self._serves_others(caller)
            and not has_hooks(old)
            and not parametrize.is_parametrized(old)
            and id(old) not in self.held
            and self.read_directly.isdisjoint(map(id, old.modules()))
            and not any(self.uses[id(part)] for part in old.modules() if part is not old)
        )

    def _sees(self, call: Call, node: fx.Node) -> bool:
        """Whether a call's own code can name a value."""
        return (
            node.op == "get_attr"
            or call in self.result.caller[node].ancestry()
            or any(self.result.current(argument) is node for argument in nodes_in(call.arguments))
        )


@dataclass(frozen=True)
class _Use:
    """Who runs the operators of a region in the module that holds it.

    Args:
        module: The module.
        parts: Names of the module's parts that hold some, in the order in which they run.
        in_code: Whether the module's own code holds some, too.
        crossed: The calls of such parts, and of what is inside them.
        methods: The methods of its class that name such parts, and which of them.
        callers: All methods that call such parts: the identity of their module, and their name.
        serves: Whether other calls want the parts as they were.
    """

    module: nn.Module
    parts: Sequence[str]
    in_code: bool
    crossed: Sequence[Call]
    methods: Mapping[str, set[str]]
    callers: Set[tuple[int, str]]
    serves: bool


def _working(region: Region) -> set[fx.Node]:
    """The operators of a region, and those that change with it, that do something."""
    return {link.value for link in region.changing if link.form and not link.form.identity}


def _name_in(holder: Call, path: str) -> str:
    """The name of what holds a path, in a module around it."""
    return path.removeprefix(f"{holder.path}.").split(".")[0]


def frame_of(trace: Trace, region: Region) -> Call:
    """The innermost call that all of a region lies in."""
    nodes = [region.value, *region.dying, *region.together]
    return common_caller([trace.caller[node] for node in nodes if node.op != "get_attr"])


def keep_for_methods(
    path: str, caller: Call, rewrite: Rewrite, sites: Callable[[Call], CallSites]
) -> None:
    """Protect what a forward need not run where a method of some module around it may."""
    for call, name in run_by_methods(path, caller, sites):
        rewrite.protected.setdefault(call, set()).add(name)


def run_by_methods(
    path: str, caller: Call, sites: Callable[[Call], CallSites]
) -> Iterator[tuple[Call, str]]:
    """The calls around a path with a public method that may run it, and by what name."""
    for call in caller.ancestry():
        name = _name_in(call, path)
        naming = methods_naming(call.module, {name}).keys() - {"forward"}
        public = [own_methods(type(call.module))[n] for n in naming if not n.startswith("_")]
        if public and any(map(sites(call).may_call, public)):
            yield call, name


def sites_of_calls() -> Callable[[Call], CallSites]:
    """What the classes in the module of a call call, read once for each."""
    return cache(lambda call: CallSites(call.module))
