"""Where the operator of a region belongs: whose code names it, and what must not change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from torch import fx, nn

from reparam.analysis.facts import Facts
from reparam.capture.reading.call_sites import CallSites
from reparam.capture.reading.method_names import methods_naming, methods_running, runs_as_one
from reparam.capture.reading.source import own_methods
from reparam.capture.structures import nodes_in
from reparam.capture.trace import Call, Trace, calls_between, common_caller, knows_only_tensors
from reparam.modules.tree import fetch, has_hooks, held_aside, read_from
from reparam.planning.dominators import Link
from reparam.planning.regions import Region
from reparam.rewriting.changes import Rewrite


class Placer:
    """Finds the place of every region of one trace.

    Args:
        trace: The trace.
        facts: What was known of the graph before it is edited.
        result: What is to be done to the modules so far; parts to be kept are noted there.
        merged: The calls whose code will be a part of their caller's.
    """

    def __init__(
        self, trace: Trace, facts: Facts, result: Rewrite, merged: Collection[Call]
    ) -> None:
        self.trace = trace
        self.facts = facts
        self.result = result
        self.merged = merged
        self.as_written = True
        self.uses = Counter(
            id(fetch(trace.root, str(node.target)))
            for node in trace.graph.nodes
            if node.op == "call_module"
        )
        self.traced_through = Counter(id(call.module) for call in trace.calls)
        self.held = held_aside(trace.root)
        self.sites: dict[Call, CallSites] = {}
        self.read_directly = {
            id(read_from(trace.root, str(node.target)))
            for node in trace.graph.nodes
            if node.op == "get_attr"
        }

    def placement(self, region: Region) -> tuple[Call, Call, bool]:
        """Where a region belongs: its frame, whose code gets the new operator, and whether none.

        Returns:
            The innermost call that all of the region lies in, the call whose code names the new
            operator, and whether a module is replaced where it is registered instead.
        """
        main, value = region.main, region.value
        changing = region.dying | region.together
        callers = [self.trace.caller[node] for node in changing if node.op != "get_attr"]
        place = main.value if region.collapses else value
        single = len(main.inner) == 1 and region.collapses
        frame = common_caller(callers) if region.collapses else self.trace.caller[value]
        while frame in self.merged and frame.parent is not None:
            frame = frame.parent
        whole = common_caller([frame, *callers, *self._span(region)])
        if not knows_only_tensors(whole):
            # Called otherwise, its parts may get values that do not depend on the base like this.
            if region.collapses:
                frame = whole
            else:
                self._keep_parts(region, whole, set())
        self.as_written = region.collapses and self._methods_agree(region, frame)
        swap = single and not region.converts and self.may_swap(main, region, frame)
        if single:
            owner = self.trace.caller[place]
        else:
            inner = (node for node in main.inner if node in region.dying or node is place)
            owner = common_caller([self.trace.caller[node] for node in inner])
        while owner.parent is not None and not self._sees(
            owner, self.result.current(region.source)
        ):
            owner = owner.parent
        if region.collapses and not self.as_written:
            owner = frame
        while not swap and owner.parent is not None and self._must_not_grow(owner):
            owner = owner.parent
        return frame, owner, swap

    def _span(self, region: Region) -> set[Call]:
        """The calls through which a region's value depends on its base, dying or not."""
        facts = self.facts
        pending = [region.value, *(absorbed.term for absorbed in region.absorbed)]
        first, found = facts.order[region.base], set()
        while pending:
            node = pending.pop()
            if node in found or facts.order[node] <= first:
                continue
            found.add(node)
            pending.extend(facts.operands(node))
        return {self.trace.caller[node] for node in found}

    def _methods_agree(self, region: Region, frame: Call) -> bool:
        """Whether every method of the module that holds a region runs all of it or nothing.

        A method that runs a part of it, ``forward_features`` say, must go on finding that part as
        it was.
        """
        prefix = f"{frame.path}." if frame.path else ""
        order: dict[str, None] = {}
        parts: set[int] = set()
        crossed: set[Call] = set()
        in_code = False
        links = [link for link in region.links if link.form and not link.form.identity]
        joined = region.together.union(*(link.inner for link in links))
        for node in sorted(joined, key=self.facts.order.__getitem__):
            caller, path = self.trace.caller[node], self.trace.caller[node].path
            crossed.update(calls_between(caller, frame))
            if node.op == "call_module":
                path = str(node.target)
                parts.add(id(fetch(self.trace.root, path)))
            elif caller is frame:
                in_code = in_code or node not in self.facts.sources
                continue
            if path.startswith(prefix):
                order[path[len(prefix) :].split(".")[0]] = None
        names = set(order)
        methods = methods_naming(frame.module, names)
        if not in_code and region.main.value.op == "call_module":
            kept = str(region.main.value.target).removeprefix(prefix).split(".")[0]
            for name in self._reading_what_goes(frame, methods, kept):
                del methods[name]
        partial = {name for name, used in methods.items() if used != names}
        public = {name for name in methods if name != "forward" and not name.startswith("_")}
        if names and not knows_only_tensors(frame):
            # With other arguments the code as it was runs, and calls the parts as they were.
            self._keep_parts(region, frame, names)
            return False
        parts.update(id(call.module) for call in crossed)
        callers = {caller for part in parts for caller in self.trace.by_methods.get(part, ())}
        # Methods that only read the weights, to convert them say, do not count.
        calling = {name for key, name in callers if key == id(frame.module)} & methods.keys()
        torn = {name for name in calling if not runs_as_one(frame.module, name, list(order))}
        serves = self._serves_other_calls(crossed, frame)
        if (
            partial - {"forward"}
            or torn
            or (in_code and public)
            or (partial and len(methods) > 1)
            or self._run_otherwise(callers, frame, methods)
            or serves
        ):
            # A method that only reads the weights of what is gone, to convert them say, will raise.
            needed = callers or serves or self._may_run(frame, methods)
            self._keep_parts(region, frame, names if needed else set())
            return False
        mixing = {
            self.trace.caller[link.value]
            for link in region.path
            if link.form is not None and not link.form.diagonal
        }
        if len(mixing) > 1 and names:
            # A part would return other channels or another size than it did.
            self._keep_parts(region, frame, names)
            return False
        return True

    def _run_otherwise(
        self, callers: Collection[tuple[int, str]], frame: Call, methods: Collection[str]
    ) -> bool:
        """Whether parts are run by other modules' methods, or by those that do not name them."""
        known = methods_running(frame.module, methods) if callers else ()
        return any(key != id(frame.module) or name not in known for key, name in callers)

    def _reading_what_goes(
        self, frame: Call, methods: Mapping[str, set[str]], kept: str
    ) -> list[str]:
        """The methods that read the weights of parts that become nothing, and run none.

        Such a method raises afterwards, wherever the new operator is.
        """
        functions = own_methods(type(frame.module))
        return [
            name
            for name, used in methods.items()
            if name != "forward"
            and kept not in used
            and not self._sites(frame).may_call(functions[name])
        ]

    def _sites(self, frame: Call) -> CallSites:
        if frame not in self.sites:
            self.sites[frame] = CallSites(frame.module)
        return self.sites[frame]

    def _may_run(self, frame: Call, methods: Collection[str]) -> bool:
        """Whether methods, or what a user calls and calls them, may run parts unseen."""
        functions = own_methods(type(frame.module))
        return any(
            self._sites(frame).may_call(functions[name])
            for name in methods_running(frame.module, methods) & functions.keys() - {"forward"}
            if not name.startswith("_") or name.endswith("__")
        )

    def _serves_other_calls(self, crossed: Collection[Call], frame: Call) -> bool:
        """Whether some part has calls that want it as it was: so may a user who calls it alone."""
        repeated = [call for call in (*crossed, *frame.ancestry()) if self._is_repeated(call)]
        return bool(repeated) and id(repeated[0].module) not in self.result.alike

    def _is_repeated(self, call: Call) -> bool:
        return self.traced_through[id(call.module)] > 1

    def _keep_parts(self, region: Region, frame: Call, names: set[str]) -> None:
        """Write a region into its frame's own code; its parts stay what they are."""
        while frame.parent is not None and self._must_not_grow(frame):
            names = names and {frame.path.removeprefix(f"{frame.parent.path}.").split(".")[0]}
            frame = frame.parent
        self.result.protected.setdefault(frame, set()).update(names)
        for node in region.dying:
            self.result.inlined.update(calls_between(self.trace.caller[node], frame))

    def may_swap(self, link: Link, region: Region, frame: Call) -> bool:
        """Whether a module may be replaced where it is registered, and no code has to change."""
        node = link.value
        scales = any(share.link is link for share in region.shares)
        if node.op != "call_module" or (node in region.shared and not scales):
            return False
        old = fetch(self.trace.root, str(node.target))
        holder = self.trace.caller[node].module
        times = self.traced_through[id(holder)]
        reader = self.result.copy(node)
        reads = reader.args[:1] if len(reader.args) == 1 and not reader.kwargs else ()
        return (
            self.as_written
            and self.uses[id(old)] == times
            and reads == (self.result.current(link.base),)
            and id(old) not in self.read_directly
            and (times == 1 or id(holder) in self.result.alike)
            and not has_hooks(old)
            and not any(child for child in old.children())
            and id(old) not in self.held
            and knows_only_tensors(frame)
        )

    def _sees(self, call: Call, node: fx.Node) -> bool:
        """Whether a call's own code can name a value."""
        if node.op == "get_attr":
            return True
        caller = self.result.caller[node]
        if caller is call or call in caller.ancestry():
            return True
        return any(self.result.current(argument) is node for argument in nodes_in(call.arguments))

    def _must_not_grow(self, call: Call) -> bool:
        """Whether a new part would change how a module runs, or its code cannot be replaced."""
        containers = nn.Sequential | nn.ModuleList | nn.ModuleDict
        repeated = self._is_repeated(call) and id(call.module) not in self.result.alike
        return isinstance(call.module, containers) or repeated


def frame_of(trace: Trace, region: Region) -> Call:
    """The innermost call that all of a region lies in."""
    nodes = [region.value, *region.dying, *region.together]
    return common_caller([trace.caller[node] for node in nodes if node.op != "get_attr"])
