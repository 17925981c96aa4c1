"""Edit a traced graph so that each region becomes one operator, and note whose code changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Set

from torch import fx, nn

from reparam.algebra.lowering import explicit_padding, pad_mode
from reparam.analysis.facts import Facts
from reparam.capture.structures import nodes_in
from reparam.capture.trace import Call, Trace, calls_between, knows_only_tensors
from reparam.errors import Refusal
from reparam.modules.tree import all_names
from reparam.planning.dominators import Link
from reparam.planning.regions import Region
from reparam.rewriting.changes import Rewrite
from reparam.rewriting.placement import Placement, Placer, frame_of
from reparam.rewriting.repeats import edited_alike

Operators = list[tuple[Region, nn.Module]]


def rewrite(
    trace: Trace,
    operators: Operators,
    facts: Facts,
    merged: Collection[int] = (),
    unlike: Set[int] = frozenset(),
) -> Rewrite:
    """Edit the graph of a trace.

    Args:
        trace: The trace; its graph is changed.
        operators: The regions and the modules that stand for them.
        facts: What was known of the graph before.
        merged: Numbers of the calls whose code will be a part of their caller's.
        unlike: Identities of the modules whose calls need different code.
    """
    return Rewriter(trace, facts, merged).run(operators, unlike)


class Rewriter:
    """Edits the graph of one trace, region by region.

    Args:
        trace: The trace.
        facts: What was known of the graph before.
        merged: Numbers of the calls whose code will be a part of their caller's.
    """

    def __init__(self, trace: Trace, facts: Facts, merged: Collection[int] = ()) -> None:
        self.trace = trace
        self.facts = facts
        self.result = Rewrite(trace, idle=facts.idle)
        self.placer = Placer(trace, facts, self.result, merged)
        self.paths = all_names(trace.root)
        self.inside: dict[Call, set[fx.Node]] = {call: set() for call in trace.calls}
        for node in trace.graph.nodes:
            self.inside[trace.caller[node]].add(node)
        self.homes: dict[int, list[str]] = {}
        self.numbers: Counter[str] = Counter()
        self.taken = set(self.paths)

    def run(self, operators: Operators, unlike: Set[int] = frozenset()) -> Rewrite:
        """Edit the graph so that every region becomes its operator.

        Args:
            operators: The regions and the modules that stand for them.
            unlike: Identities of the modules whose calls need different code.
        """
        self.result.alike = edited_alike(self.trace, operators, self.facts.idle) - unlike
        for region, _ in operators:  # while the graph is what was traced
            self.placer.remember_span(region)
            self.result.dead |= region.dying
        self.result.dead -= {region.value for region, _ in operators}
        for region, module in operators:
            self.result.edited = self.result.changes[region.value] = set()
            self.apply(region, module)
        for region, _ in reversed(operators):  # what another region read until it was written, too
            self.result.edited = self.result.changes[region.value]
            self._sweep(region)
        self.result.edited = set().union(*self.result.changes.values())
        return self.result

    def apply(self, region: Region, module: nn.Module) -> None:
        """Edit the graph so that one region becomes its operator."""
        graph, result = self.trace.graph, self.result
        self._erase_unread(self._doomed(region))
        main, value = region.main, region.value
        place = main.value if region.collapses else value
        home = self.placer.placement(region)
        owner, swap = home.owner, main.value in home.swaps
        if home.writer is not None:
            result.protected.setdefault(home.writer, set()).update(home.kept)
            for node in region.dying:
                result.inlined.update(calls_between(self.trace.caller[node], home.writer))
        read = result.current(region.source)
        path = str(place.target) if swap else self._home(owner, module)
        result.modules[path] = module
        result.names[value] = path
        for node in region.dying:
            if node.op == "call_module":
                result.joined[str(node.target)] = path
        if swap:
            result.swapped.append((path, home.frame))
            for other in self.paths[path]:
                result.modules[other] = module
        with graph.inserting_before(place):
            for sides in explicit_padding(region.form):
                read = graph.call_function(
                    nn.functional.pad, (read, sides), {"mode": pad_mode(region.form, sides)}
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
                    self._skip(link, region, home)
        for share in region.shares:
            if share.link.value not in result.replaced:
                self._skip(share.link, region, home)
        for absorbed in region.absorbed:
            self._substitute(absorbed.total, result.current(absorbed.kept), keep_code=False)
        self._sweep(region)

    def _doomed(self, region: Region) -> list[fx.Node]:
        """What reads a dying value although nobody reads it, and cannot read what replaces it."""
        ignored = self.facts.asserted | self.facts.unread
        replaced = {link.value for link in region.path} if region.collapses else {region.value}
        replaced.update(absorbed.total for absorbed in region.absorbed)
        replaced.update(share.link.value for share in region.shares)
        return [
            user
            for node in region.dying
            for user in node.users
            if user in ignored
            and user not in region.dying
            and not (node in replaced and user in self.facts.numbers)
        ]

    def edits(self, region: Region) -> set[Call]:
        """The calls whose code would change for a region."""
        home = self.placer.placement(region)
        if not region.collapses:
            return {home.owner, self.trace.caller[region.value]}
        changed = set() if region.main.value in home.swaps else {home.owner}
        changed.update(self.trace.caller[node] for node in self._doomed(region))
        for link in region.links:
            if link.form is not None and link.value not in home.swaps:
                changed.update(
                    self.trace.caller[node] for node in link.inner if node.op != "get_attr"
                )
        return changed

    def _skip(self, link: Link, region: Region, home: Placement) -> None:
        """Make one link of a path the identity."""
        base = self.result.current(link.base)
        if link.value in home.swaps:
            identity = nn.Identity().eval()
            self.result.swapped.append((str(link.value.target), home.frame))
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


def frame_problem(rewriter: Rewriter, region: Region) -> Refusal | None:
    """Why a region may not be fused although it is exact: its code keeps state.

    A module whose forward changes the module runs as it is written. What lies inside one of its
    parts may change if that part alone decides how it runs.
    """
    trace = rewriter.trace
    frame = frame_of(trace, region)
    refusal = Refusal(
        f"{frame.path or 'the model'} changes its own attributes when it runs, or enters a context "
        "such as torch.no_grad"
    )
    crossed = {
        call
        for node in region.dying
        if node.op != "get_attr"
        for call in trace.caller[node].ancestry()
    } - set(frame.ancestry())
    if ({frame} | crossed | rewriter.edits(region)) & trace.stateful:
        return refusal
    if not any(call in trace.stateful for call in frame.ancestry()):
        return None
    times = sum(call.module is frame.module for call in trace.calls)
    arguments = list(nodes_in(frame.arguments))
    visible = region.base in arguments or frame in trace.caller[region.base].ancestry()
    if times == 1 and visible and knows_only_tensors(frame):
        return None
    return refusal
