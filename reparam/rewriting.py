"""Edit a traced graph so that each region becomes one operator, and note whose code changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from torch import fx, nn

from reparam.calls import Call, Trace
from reparam.costs import explicit_padding
from reparam.facts import Facts
from reparam.forest import Link
from reparam.frames import common_caller, held_aside, knows_only_tensors, read_from
from reparam.methods import methods_naming
from reparam.modules import all_names, fetch, has_hooks
from reparam.regions import Region
from reparam.structures import nodes_in
from reparam.verification import pad_mode

Operators = list[tuple[Region, nn.Module]]


@dataclass
class Rewrite:
    """What has to be done to the modules of the root besides new code.

    Args:
        trace: The trace, its graph edited.
        modules: New modules by the path where they belong.
        edited: The calls whose own code changed.
        changes: The same by the value of the region for which it changed.
        replaced: For each node that is gone the node that stands for it.
        removed: Modules and tensors that some code does not use any more: path and code.
        swapped: Modules that are replaced where they are registered, and the call that all of the
            region lies in.
        names: Where each region's operator is registered.
        protected: For each call the parts that other methods of its module run by themselves.
        inlined: Calls whose code has to move into their caller's.
        idle: Nodes that no code has to compute.
        dead: Values that are computed no more, though another node stands where they stood.
    """

    trace: Trace
    modules: dict[str, nn.Module] = field(default_factory=dict)
    edited: set[Call] = field(default_factory=set)
    changes: dict[fx.Node, set[Call]] = field(default_factory=dict)
    replaced: dict[fx.Node, fx.Node] = field(default_factory=dict)
    removed: list[tuple[str, Call]] = field(default_factory=list)
    swapped: list[tuple[str, Call]] = field(default_factory=list)
    names: dict[fx.Node, str] = field(default_factory=dict)
    protected: dict[Call, set[str]] = field(default_factory=dict)
    inlined: set[Call] = field(default_factory=set)
    idle: set[fx.Node] = field(default_factory=set)
    dead: set[fx.Node] = field(default_factory=set)

    def current(self, node: fx.Node) -> fx.Node:
        """The node that stands for a node of the trace now."""
        while node in self.replaced:
            node = self.replaced[node]
        return node


def rewrite(
    trace: Trace, operators: Operators, facts: Facts, merged: Collection[int] = ()
) -> Rewrite:
    """Edit the graph of a trace.

    Args:
        trace: The trace; its graph is changed.
        operators: The regions and the modules that stand for them.
        facts: What was known of the graph before.
        merged: Numbers of the calls whose code will be a part of their caller's.
    """
    return Rewriter(trace, facts, merged).run(operators)


class Rewriter:
    """Edits the graph of one trace, region by region.

    Args:
        trace: The trace.
        facts: What was known of the graph before.
        merged: Numbers of the calls whose code will be a part of their caller's.
    """

    def __init__(self, trace: Trace, facts: Facts, merged: Collection[int] = ()) -> None:
        self.merged = {trace.calls[number] for number in merged}
        self.trace = trace
        self.facts = facts
        self.result = Rewrite(trace, idle=facts.idle)
        self.as_written = True
        self.paths = all_names(trace.root)
        self.uses = Counter(
            id(fetch(trace.root, str(node.target)))
            for node in trace.graph.nodes
            if node.op == "call_module"
        )
        self.traced_through = Counter(id(call.module) for call in trace.calls)
        self.held = held_aside(trace.root)
        self.read_directly = {
            id(read_from(trace.root, str(node.target)))
            for node in trace.graph.nodes
            if node.op == "get_attr"
        }
        self.inside: dict[Call, set[fx.Node]] = {call: set() for call in trace.calls}
        for node in trace.graph.nodes:
            self.inside[trace.caller[node]].add(node)
        self.spans: dict[fx.Node, set[Call]] = {}
        self.homes: dict[int, list[str]] = {}
        self.numbers: Counter[str] = Counter()
        self.taken = set(self.paths)

    def run(self, operators: Operators) -> Rewrite:
        """Edit the graph so that every region becomes its operator."""
        for region, _ in operators:  # while the graph is what was traced
            self.spans[region.value] = self._span(region)
            self.result.dead |= region.dying
        self.result.dead -= self.spans.keys()
        for region, module in operators:
            self.result.edited = self.result.changes[region.value] = set()
            self.apply(region, module)
        self.result.edited = set().union(*self.result.changes.values())
        return self.result

    def apply(self, region: Region, module: nn.Module) -> None:
        """Edit the graph so that one region becomes its operator."""
        graph, result = self.trace.graph, self.result
        self._erase_unread(self._doomed(region))
        main, value = region.main, region.value
        place = main.value if region.collapses else value
        source = main.base if region.collapses else region.base
        frame, owner, swap = self.placement(region)
        read = result.current(source)
        path = str(place.target) if swap else self._home(owner, module)
        result.modules[path] = module
        result.names[value] = path
        if swap:
            result.swapped.append((path, frame))
            for other in self.paths[path]:
                result.modules[other] = module
        with graph.inserting_before(place):
            for sides in explicit_padding(region.form):
                read = graph.call_function(
                    nn.functional.pad, (read, sides), {"mode": pad_mode(region, sides)}
                )
                self.trace.caller[read] = owner
                self.inside[owner].add(read)
                result.edited.add(owner)
            if region.converts:
                weight = graph.get_attr(f"{path}.weight")
                read = graph.call_method("type_as", (read, weight))
                for node in (weight, read):
                    self.trace.caller[node] = owner
                    self.inside[owner].add(node)
            new = graph.call_module(path, (read,))
        self.trace.caller[new] = owner
        self.inside[owner].add(new)
        if not swap:
            result.edited.add(owner)
            self._note_edits(main.inner if region.collapses else (value,), region)
        self._substitute(place, new, keep_code=swap)
        if region.collapses:
            for link in region.path:
                if link.form is not None and link is not main:
                    self._skip(link, region, frame)
        for absorbed in region.absorbed:
            self._substitute(absorbed.total, result.current(absorbed.kept), keep_code=False)
        self._sweep(region)

    def placement(self, region: Region) -> tuple[Call, Call, bool]:
        """Where a region belongs: its frame, whose code gets the new operator, and whether none.

        Returns:
            The innermost call that all of the region lies in, the call whose code names the new
            operator, and whether a module is replaced where it is registered instead.
        """
        main, value = region.main, region.value
        callers = [self.trace.caller[node] for node in region.dying if node.op != "get_attr"]
        place = main.value if region.collapses else value
        source = main.base if region.collapses else region.base
        single = len(main.inner) == 1 and region.collapses
        frame = common_caller(callers) if region.collapses else self.trace.caller[value]
        while frame in self.merged and frame.parent is not None:
            frame = frame.parent
        spanned = self.spans[value] if value in self.spans else self._span(region)
        whole = common_caller([frame, *callers, *spanned])
        if not knows_only_tensors(whole):
            # Called otherwise, its parts may get values that do not depend on the base like this.
            if region.collapses:
                frame = whole
            else:
                self._keep_parts(region, whole, set())
        self.as_written = region.collapses and self._methods_agree(region, frame)
        swap = single and not region.converts and self._may_swap(main, region, frame)
        if single:
            owner = self.trace.caller[place]
        else:
            inner = (node for node in main.inner if node in region.dying or node is place)
            owner = common_caller([self.trace.caller[node] for node in inner])
        while owner.parent is not None and not self._sees(owner, self.result.current(source)):
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

    def _doomed(self, region: Region) -> list[fx.Node]:
        """What reads a dying value although nobody reads it, and cannot read what replaces it."""
        ignored = self.facts.asserted | self.facts.unread
        replaced = {link.value for link in region.path} if region.collapses else {region.value}
        replaced.update(absorbed.total for absorbed in region.absorbed)
        return [
            user
            for node in region.dying
            for user in node.users
            if user in ignored and not (node in replaced and user in self.facts.numbers)
        ]

    def edits(self, region: Region) -> set[Call]:
        """The calls whose code would change for a region."""
        frame, owner, swap = self.placement(region)
        if not region.collapses:
            return {owner, self.trace.caller[region.value]}
        changed = set() if swap else {owner}
        changed.update(self.trace.caller[node] for node in self._doomed(region))
        for link in region.path:
            if link.form is None or (link is region.main and swap):
                continue
            kept = len(link.inner) == 1 and self._may_swap(link, region, frame)
            if not kept:
                changed.update(
                    self.trace.caller[node] for node in link.inner if node.op != "get_attr"
                )
        return changed

    def _skip(self, link: Link, region: Region, frame: Call) -> None:
        """Make one link of a path the identity."""
        base = self.result.current(link.base)
        if len(link.inner) == 1 and self._may_swap(link, region, frame):
            identity = nn.Identity().eval()
            self.result.swapped.append((str(link.value.target), frame))
            for path in self.paths[str(link.value.target)]:
                self.result.modules[path] = identity
            self._substitute(link.value, base, keep_code=True)
            return
        self._note_edits(link.inner, region)
        self._substitute(link.value, base, keep_code=False)

    def _note_edits(self, nodes: Iterable[fx.Node], region: Region) -> None:
        for node in nodes:
            if node in region.dying and node.op != "get_attr":
                self.result.edited.add(self.trace.caller[node])

    def _substitute(self, old: fx.Node, new: fx.Node, *, keep_code: bool) -> None:
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        self.result.replaced[old] = new
        if not keep_code and old.op == "call_module":
            self.result.removed.append((str(old.target), self.trace.caller[old]))

    def _sweep(self, region: Region) -> None:
        """Erase what nobody reads any more: parameters, constants and assertions included."""
        frames = {self.trace.caller[node] for node in region.dying}
        pending = sorted(region.dying, key=self.facts.order.__getitem__, reverse=True)
        for node in pending:
            if node.users or node not in self.inside[self.trace.caller[node]]:
                continue
            feeds = list(node.all_input_nodes)
            if node not in self.result.replaced:
                self.result.edited.add(self.trace.caller[node])
            self._erase(node)
            for feed in feeds:
                self._erase_constants(feed)
        for frame in frames:
            left = self.inside[frame]
            if left <= self.facts.asserted:
                self._erase_unread(list(left))

    def _erase(self, node: fx.Node) -> None:
        if node.op in ("call_module", "get_attr") and node not in self.result.replaced:
            self.result.removed.append((str(node.target), self.trace.caller[node]))
        self.inside[self.trace.caller[node]].discard(node)
        self.trace.graph.erase_node(node)

    def _erase_unread(self, nodes: list[fx.Node]) -> None:
        """Erase what nobody reads of what is gone, and assertions on its shape."""
        found: set[fx.Node] = set()
        pending = list(nodes)
        while pending:
            node = pending.pop()
            if node not in found:
                found.add(node)
                pending.extend(node.users)
        for node in sorted(found, key=self.facts.order.__getitem__, reverse=True):
            if node in self.inside[self.trace.caller[node]]:
                self.result.edited.add(self.trace.caller[node])
                self._erase(node)

    def _erase_constants(self, node: fx.Node) -> None:
        """Erase parameters, what is computed of them and sizes, once nobody reads them."""
        pending = [node]
        while pending:
            node = pending.pop()
            if node.users or node not in self.inside[self.trace.caller[node]]:
                continue
            if node not in self.facts.sources and node not in self.facts.numbers:
                continue
            feeds = list(node.all_input_nodes)
            self._erase(node)
            pending.extend(feeds)

    def _methods_agree(self, region: Region, frame: Call) -> bool:
        """Whether every method of the module that holds a region runs all of it or nothing.

        A method that runs a part of it, ``forward_features`` say, must go on finding that part as
        it was.
        """
        prefix = f"{frame.path}." if frame.path else ""
        names: set[str] = set()
        in_code = False
        for link in region.path:
            if link.form is None or link.form.identity:
                continue
            for node in link.inner:
                caller = self.trace.caller[node]
                path = str(node.target) if node.op == "call_module" else caller.path
                if node.op != "call_module" and caller is frame:
                    in_code = in_code or node not in self.facts.sources
                elif path.startswith(prefix):
                    names.add(path[len(prefix) :].split(".")[0])
        methods = methods_naming(frame.module, names)
        partial = {name for name, used in methods.items() if used != names}
        public = {name for name in methods if name != "forward" and not name.startswith("_")}
        if names and not knows_only_tensors(frame):
            # With other arguments the code as it was runs, and calls the parts as they were.
            self._keep_parts(region, frame, names)
            return False
        if partial - {"forward"} or (in_code and public) or (partial and len(methods) > 1):
            self._keep_parts(region, frame, names)
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

    def _keep_parts(self, region: Region, frame: Call, names: set[str]) -> None:
        """Write a region into its frame's own code; its parts stay what they are."""
        self.result.protected.setdefault(frame, set()).update(names)
        for node in region.dying:
            for call in self.trace.caller[node].ancestry():
                if call is frame:
                    break
                self.result.inlined.add(call)

    def _may_swap(self, link: Link, region: Region, frame: Call) -> bool:
        """Whether a module may be replaced where it is registered, and no code has to change."""
        node = link.value
        if node.op != "call_module" or node in region.shared:
            return False
        old = fetch(self.trace.root, str(node.target))
        reads = node.args[:1] if len(node.args) == 1 and not node.kwargs else ()
        return (
            self.as_written
            and self.uses[id(old)] == 1
            and reads == (self.result.current(link.base),)
            and id(old) not in self.read_directly
            and self.traced_through[id(self.trace.caller[node].module)] == 1
            and not has_hooks(old)
            and not any(child for child in old.children())
            and id(old) not in self.held
            and knows_only_tensors(frame)
        )

    def _sees(self, call: Call, node: fx.Node) -> bool:
        """Whether a call's own code can name a value."""
        if node.op == "get_attr":
            return True
        caller = self.trace.caller[node]
        if caller is call or call in caller.ancestry():
            return True
        return any(self.result.current(argument) is node for argument in nodes_in(call.arguments))

    def _must_not_grow(self, call: Call) -> bool:
        """Whether a new part would change how a module runs, or its code cannot be replaced."""
        containers = nn.Sequential | nn.ModuleList | nn.ModuleDict
        return isinstance(call.module, containers) or self.traced_through[id(call.module)] > 1

    def _home(self, owner: Call, module: nn.Module) -> str:
        """Where a new operator is registered: once, if several calls can see it there."""
        prefix = f"{owner.path}." if owner.path else ""
        homes = self.homes.setdefault(id(module), [])
        path = next((home for home in homes if home.startswith(prefix)), None)
        if path is None:
            path = self._new_name(owner, module)
            homes.append(path)
        return path

    def _new_name(self, owner: Call, module: nn.Module) -> str:
        kind = type(module).__name__
        stem = "fused_linear" if kind == "Linear" else "fused_conv"
        prefix = f"{owner.path}." if owner.path else ""
        number = self.numbers[prefix + stem]
        while True:
            name = f"{stem}_{number}" if number else stem
            number += 1
            if prefix + name not in self.taken and not hasattr(owner.module, name):
                break
        self.numbers[prefix + stem] = number
        self.taken.add(prefix + name)
        return prefix + name
