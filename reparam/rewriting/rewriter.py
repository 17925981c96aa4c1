"""Edit a copy of a graph so that each region becomes one operator; note whose code changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Set
from functools import partial

import torch
from torch import fx, nn

from reparam.algebra import AffineConv, explicit_padding, pad_mode
from reparam.analysis import Facts, Part
from reparam.capture import (
    Assumed,
    Call,
    CheckedIdentity,
    Trace,
    calls_between,
    checked_axes,
    checked_sizes,
    hold,
    knows_only_tensors,
    nodes_in,
    reached,
)
from reparam.errors import Refusal
from reparam.modules import all_names, fetch, join
from reparam.planning import Link, Multiple, Region, Rows
from reparam.rewriting.changes import Rewrite, begun, unedited
from reparam.rewriting.copied_metadata import (
    describe_helper,
    describe_operator,
    describe_value,
    replaced_operator,
    take_attributes,
)
from reparam.rewriting.invariants import REWRITTEN
from reparam.rewriting.placement import Placement, Placer, frame_of, keep_for_methods
from reparam.rewriting.ranks_told import rests_on_rank
from reparam.rewriting.repeats import edited_alike

Operators = list[tuple[Region, nn.Module]]


def rewrite(
    trace: Trace,
    operators: Operators,
    facts: Facts,
    merged: Collection[Call] = (),
    unlike: Set[int] = frozenset(),
) -> Rewrite:
    """Edit a copy of the graph of a trace so that every region becomes its operator.

    The code of merged calls will be a part of their caller's, and the calls of unlike modules, by
    identity, need different code.
    """
    rewriter = Rewriter(trace, facts, merged)
    result = rewriter.result
    result.alike = edited_alike(trace, operators, facts.idle) - unlike
    result.dead = {node for region, _ in operators for node in region.dying}
    result.dead -= {region.value for region, _ in operators}
    if trace.ways_in:
        result.altered = set().union(*(_altered(region) for region, _ in operators))
    for region, _ in operators:
        rewriter.awaited.update((region.value, *region.dying))
    for region, module in operators:
        rewriter.awaited.subtract((region.value, *region.dying))
        rewriter.apply(region, module)
    for region, _ in reversed(operators):  # what another region read until it was written, too
        rewriter.sweep(region)
    hold("rewriting", REWRITTEN, result)
    return result


def _altered(region: Region) -> set[fx.Node]:
    """The values inside a region, and between it and what else its operator does."""
    altered = {*region.inner, *region.unscaled}
    if region.folded is not None:
        return altered - ({region.value} - region.folded.bare)
    if region.adjustments:
        below = reached([region.value], lambda node: node.users)
        altered |= below & reached([region.kept], lambda node: node.all_input_nodes)
    return altered - {region.kept}


class Rewriter:
    """Edits a copy of the graph of one trace, region by region."""

    def __init__(self, trace: Trace, facts: Facts, merged: Collection[Call] = ()) -> None:
        self.trace = trace
        self.facts = facts
        self.result = begun(trace)
        self.result.idle = set(map(self.result.copy, facts.idle))
        self.placer = Placer(facts, self.result, merged)
        self.paths = all_names(trace.root)
        self.inside: dict[Call, set[fx.Node]] = {call: set() for call in trace.calls}
        for node, call in self.result.caller.items():
            self.inside[call].add(node)
        self.edited: set[Call] = set()
        """The calls whose code changes for the region at hand."""
        self.homes: dict[int, list[str]] = {}
        self.numbers: Counter[str] = Counter()
        self.awaited: Counter[fx.Node] = Counter()
        """How many of the regions that are still to come a node of the trace belongs to."""
        self.multiplied: set[fx.Node] = set()
        """The values side by side that are multiplied where they are added up."""
        self.likened: set[fx.Node] = set()
        """The operators whose descriptions new ones have taken over."""

    def apply(self, region: Region, module: nn.Module) -> None:
        """Edit the graph so that one region becomes its operator."""
        graph, result = self.result.graph, self.result
        self.edited = result.changes[region.value] = set()
        self._erase_unread(_doomed(region, self.facts, result))
        main, value = region.main, region.value
        place = main.value if region.collapses else value
        home = self.placer.placement(region)
        result.frames[value] = home.frame
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
        if swap or (owner is not home.frame and home.frame in owner.ancestry()):
            result.swapped.add(value)
        if swap:
            for other in self.paths[path]:
                result.modules[other] = module
        with graph.inserting_before(result.copy(place)):
            for sides in explicit_padding(region.form):
                mode = pad_mode(region.form, sides)
                padded = graph.call_function(nn.functional.pad, (read, sides), {"mode": mode})
                read = self._note_new(padded, owner)
                describe_helper(read, result.copy(value))
                self.edited.add(owner)
            if region.converts:
                weight = self._note_new(graph.get_attr(f"{path}.weight"), owner)
                read = self._note_new(graph.call_method("type_as", (read, weight)), owner)
                describe_helper(read, result.copy(value))
            assumed = self._assumed(region.source, region.own, region.form)
            read = self._checked(read, assumed, owner)
            new = self._note_new(graph.call_module(path, (read,)), owner)
            self._liken(new, module, region, home)
        self._note_operator(new, region)
        if not swap:
            self.edited.add(owner)
            self._note_edits(main.inner if region.collapses else (value,), region)
        self._substitute(place, new, keep_code=swap)
        if region.collapses:
            for link in region.path:
                if link.form is not None and link is not main:
                    self._skip(link, region, home)
        for scale in region.scales:
            if result.copy(scale.value) not in result.replaced:
                self._skip(scale, region, home)
        product = None if region.multiple is None else self._multiplied(region.multiple)
        for absorbed in region.absorbed:
            if result.copy(absorbed.total) not in result.replaced:  # by another part's region
                stays = result.current(absorbed.kept)
                if region.multiple is not None and absorbed.total is region.multiple.total:
                    stays = product or stays
                self._substitute(absorbed.total, stays, keep_code=False)
        for rows, reshape in region.checked:
            self._check_sizes(rows, reshape)
        self.sweep(region)

    def _check_sizes(self, rows: Rows, reshape: fx.Node) -> None:
        """Check that a value has the sizes that are taken for granted, before it is reshaped."""
        read, reader = self.result.current(rows.base), self.result.copy(reshape)
        owner = self.trace.caller[reshape]
        axes = self.facts.ranks[rows.base]
        arguments = read, axes, rows.shape[-axes:], self._described(rows.value)
        with self.result.graph.inserting_before(reader):
            checked = self.result.graph.call_function(checked_sizes, arguments)
        describe_helper(self._note_new(checked, owner), reader)
        reader.replace_input_with(read, checked)
        self.edited.add(owner)

    def _multiplied(self, multiple: Multiple) -> fx.Node | None:
        """Values side by side, multiplied for the addition that reads them; None if it does."""
        value, total = self.result.current(multiple.value), self.result.copy(multiple.total)
        if multiple.value in self.multiplied:
            return None  # another part's region was first
        self.multiplied.add(multiple.value)
        owner = self.trace.caller[multiple.total]
        with self.result.graph.inserting_before(total):
            product = self.result.graph.call_function(torch.mul, (value, multiple.times))
        describe_helper(self._note_new(product, owner), total)
        self.edited.add(owner)
        total.replace_input_with(value, product)
        return product

    def _note_operator(self, new: fx.Node, region: Region) -> None:
        """Note what an operator stands for, and what of its base it takes for granted."""
        self.result.stand_for[new] = region.inner
        if rests_on_rank(region, self.facts) or region.base in self.facts.ones:
            self.result.by_size.add(new)

    def _note_new(self, node: fx.Node, owner: Call) -> fx.Node:
        """Note whose code a new node belongs to."""
        self.result.caller[node] = owner
        self.inside[owner].add(node)
        return node

    def _liken(self, new: fx.Node, module: nn.Module, region: Region, home: Placement) -> None:
        """Take over what is said of the operators that a new one replaces, its own kind first."""
        root, order = self.trace.root, self.facts.order
        dying = sorted(region.dying, key=lambda node: (node not in region.main.inner, order[node]))
        unlikened = (node for node in dying if node not in self.likened)
        old = replaced_operator(module, root, unlikened)
        if old is not None:
            self.likened.add(old)
            dying.remove(old)
            dying.insert(0, old)
        describe_operator(new, module, old, self.result.copy(region.value))
        stay = home.swaps - {region.main.value}  # what takes their place takes after them
        modules = [node for node in dying if node.op == "call_module" and node not in stay]
        take_attributes(module, (fetch(root, str(node.target)) for node in modules))

    def _skip(self, link: Link, region: Region, home: Placement) -> None:
        """Make one link of a path the identity, which checks what the link took for granted."""
        base, owner = self.result.current(link.base), self.trace.caller[link.value]
        swap = link.value in home.swaps
        assumed = self._assumed(link.base, link.inner, link.form)
        if swap and assumed is None and home.other_ways and rests_on_rank(region, self.facts):
            assumed = self._of_rank(link)
        # Also where modules are swapped: other regions may change the code that calls them.
        with self.result.graph.inserting_before(self.result.copy(link.value)):
            read = self._checked(base, assumed, owner)
        if swap:
            identity = (nn.Identity() if assumed is None else CheckedIdentity(assumed)).eval()
            old = fetch(self.trace.root, str(link.value.target))
            take_attributes(identity, [old])
            self.result.swapped.add(region.value)
            for path in self.paths[str(link.value.target)]:
                self.result.modules[path] = identity
        else:
            self._note_edits(link.inner, region)
            if read is not base:
                self.edited.add(owner)
            if link.value.op == "call_module" and link.form is not None and link.form.identity:
                # It is no part of the operator: nobody has asked yet which methods run it.
                keep_for_methods(str(link.value.target), owner, self.result, self.placer.sites)
        self._substitute(link.value, read, keep_code=swap)

    def _checked(self, read: fx.Node, assumed: Assumed | None, owner: Call) -> fx.Node:
        """A value, checked if something is taken for granted of it."""
        if assumed is None:
            return read
        arguments = read, *assumed.arguments
        return self._note_new(self.result.graph.call_function(checked_axes, arguments), owner)

    def _assumed(
        self, value: fx.Node, readers: Collection[fx.Node], form: AffineConv | None
    ) -> Assumed | None:
        """What is taken for granted of a value by what is fused of its readers."""
        granted, axes = self.facts.granted, 0
        channels: int | None = 0
        by_axes, by_channels = granted.axes.intersection(readers), granted.channels & set(readers)
        if by_axes:
            axes = self.facts.ranks.get(value, 0)
        if by_channels and form is not None and form.axes is not None:
            channels = form.in_channels if form.columns is None else form.columns.total
        if not axes and not channels:
            return None
        channels = channels or 0
        reader = min(by_axes | by_channels, key=self.facts.order.__getitem__)
        channel_axis = -1 if form is None else -1 - len(form.axes or ())
        return Assumed(self._described(reader), axes, channel_axis, channels)

    def _of_rank(self, link: Link) -> Assumed | None:
        """What other ways in have to give a module that was traced with a value of some rank."""
        rank = self.facts.ranks.get(link.base)
        return None if rank is None else Assumed(self._described(link.value), rank, -1, 0)

    def _described(self, reader: fx.Node) -> str:
        """Where an operator is, and of which module."""
        if reader.op == "call_module":
            path, module = str(reader.target), fetch(self.trace.root, str(reader.target))
        else:
            path, module = self.trace.caller[reader].path, self.trace.caller[reader].module
        return f"{join(self.trace.path, path) or 'the model'} ({type(module).__name__})"

    def _note_edits(self, nodes: Iterable[fx.Node], region: Region) -> None:
        for node in nodes:
            if node in region.dying and node.op != "get_attr":
                self.edited.add(self.trace.caller[node])

    def _substitute(self, old: fx.Node, new: fx.Node, *, keep_code: bool) -> None:
        copy = self.result.copy(old)
        if new not in self.result.origins:
            describe_value(new, copy)
        copy.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        self.result.replaced[copy] = new
        if not keep_code and old.op == "call_module":
            self.result.removed.append((str(old.target), self.trace.caller[old]))

    def sweep(self, region: Region) -> None:
        """Erase what nobody reads any more: parameters, constants and assertions included."""
        self.edited = self.result.changes[region.value]
        frames = {self.trace.caller[node] for node in region.dying}
        dying = sorted(region.dying, key=self.facts.order.__getitem__, reverse=True)
        for node in map(self.result.copy, dying):
            if node.users or not self._is_there(node):
                continue
            feeds = list(node.all_input_nodes)
            if node not in self.result.replaced:
                self.edited.add(self.result.caller[node])
            self._erase(node)
            for feed in feeds:
                self._erase_constants(feed)
        for frame in frames:
            left = self.inside[frame]
            if all(self.result.origin(node) in self.facts.asserted for node in left):
                self._erase_unread(list(left))

    def _is_there(self, node: fx.Node) -> bool:
        return node in self.inside[self.result.caller[node]]

    def _erase(self, node: fx.Node) -> None:
        caller = self.result.caller[node]
        if node.op in ("call_module", "get_attr") and node not in self.result.replaced:
            self.result.removed.append((str(node.target), caller))
        self.inside[caller].discard(node)
        self.result.graph.erase_node(node)

    def _erase_unread(self, nodes: list[fx.Node]) -> None:
        """Erase what nobody reads of what is gone, and assertions on its shape."""
        unread = reached(nodes, lambda node: node.users)
        # By their places in the edited graph: new operators are among them, and their checks.
        for node in sorted(unread, reverse=True):
            origin = self.result.origin(node)
            if self._is_there(node) and not self.awaited[origin] and not node.users:
                caller = self.result.caller[node]
                if node.op == "call_module":
                    keep_for_methods(str(node.target), caller, self.result, self.placer.sites)
                self.edited.add(caller)
                self._erase(node)

    def _erase_constants(self, node: fx.Node) -> None:
        """Erase parameters, what is computed of them and sizes, once nobody reads them."""
        pending = [node]
        while pending:
            node = pending.pop()
            origin = self.result.origin(node)
            constant = origin in self.facts.sources or origin in self.facts.numbers
            if constant and not node.users and self._is_there(node):
                feeds = list(node.all_input_nodes)
                self._erase(node)
                pending.extend(feeds)

    def _home(self, owner: Call, module: nn.Module) -> str:
        """Where a new operator is registered: once, if several calls can see it there."""
        prefix = f"{owner.path}." if owner.path else ""
        homes = self.homes.setdefault(id(module), [])
        path = next((home for home in homes if home.startswith(prefix)), None)
        if path is None:
            kind = type(module).__name__
            stem = "fused_linear" if kind == "Linear" else "fused_norm"
            stem = "fused_conv" if kind.startswith("Conv") else stem
            number = self.numbers[prefix + stem]
            while hasattr(owner.module, name := f"{stem}_{number}" if number else stem):
                number += 1
            self.numbers[prefix + stem] = number + 1
            path = prefix + name
            homes.append(path)
        return path


def _doomed(region: Region, facts: Facts, rewrite: Rewrite) -> list[fx.Node]:
    """What reads a dying value although nobody reads it, and cannot read what replaces it."""
    replaced = {link.value for link in region.path} if region.collapses else {region.value}
    replaced.update(absorbed.total for absorbed in region.absorbed)
    replaced.update(scale.value for scale in region.scales)
    return [
        user
        for node in region.dying
        for user in rewrite.copy(node).users
        if (origin := rewrite.origin(user)) not in region.dying
        and (origin in facts.asserted or origin in facts.unread)
        and not (node in replaced and origin in facts.numbers)
    ]


def _changed_calls(placer: Placer, region: Region) -> set[Call]:
    """The calls whose code would change for a region of a trace of which nothing is edited."""
    caller = placer.trace.caller
    home = placer.placement(region)
    if not region.collapses:
        return {home.owner, caller[region.value]}
    changed = set() if region.main.value in home.swaps else {home.owner}
    if region.multiple is not None:
        changed.add(caller[region.multiple.total])
    changed.update(caller[reshape] for _, reshape in region.checked)
    changed.update(caller[node] for node in _doomed(region, placer.facts, placer.result))
    for link in region.links:
        if link.form is not None and link.value not in home.swaps:
            changed.update(caller[node] for node in link.inner if node.op != "get_attr")
    return changed


def frame_problems(part: Part, merged: Collection[Call]) -> Callable[[Region], Refusal | None]:
    """What says of a region why it may not be fused although it is exact: its code keeps state."""
    if not part.trace.stateful:
        return lambda region: None
    placer = Placer(part.facts, unedited(part.trace), merged)
    return partial(_frame_problem, placer)


def _calls_around(nodes: Iterable[fx.Node], trace: Trace) -> set[Call]:
    """The calls in which some nodes are computed."""
    computed = (trace.caller[node] for node in nodes if node.op != "get_attr")
    return {call for caller in computed for call in caller.ancestry()}


def _frame_problem(placer: Placer, region: Region) -> Refusal | None:
    """Why a region may not be fused.

    A module whose forward changes the module runs as it is written. What lies inside one of its
    parts may change if that part alone decides how it runs.
    """
    trace = placer.trace
    frame = frame_of(trace, region)
    refusal = Refusal(
        f"{frame.path or 'the model'} changes its own attributes when it runs, or enters a context "
        "such as torch.autocast"
    )
    around = set(frame.ancestry())
    crossed = _calls_around(region.dying, trace) - around
    read = {operand for node in region.inner | region.dying for operand in node.all_input_nodes}
    constants = reached(read & placer.facts.sources.keys(), lambda node: node.all_input_nodes)
    # Of what a call with state computes nobody knows that it is the same in the next one.
    made = {trace.caller[node] for node in constants if node.op != "get_attr"}
    gone = _changed_calls(placer, region) | made | (_calls_around(constants, trace) - around)
    unsettled = trace.stateful.difference(trace.settled)
    if gone & trace.stateful or ({frame} | crossed) & unsettled:
        return refusal
    if not any(call in trace.stateful for call in frame.ancestry()):
        return None
    times = sum(call.module is frame.module for call in trace.calls)
    arguments = list(nodes_in(frame.arguments))
    visible = region.base in arguments or frame in trace.caller[region.base].ancestry()
    if times == 1 and visible and knows_only_tensors(frame):
        return None
    return refusal
