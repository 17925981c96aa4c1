"""Decide which values become which convolutions.

Walking back from the outputs, a value is replaced by the convolution of its form over one of its
bases where that costs less than the nodes that die. Whether more is gained further up is known
beforehand, from dynamic programming along the affine dominators.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod

from torch import fx

from reparam.affine import AffineConv
from reparam.channels import holds_floats
from reparam.costs import NOTHING, Cost, form_cost, least_positions, unsupported
from reparam.effects import reads_metadata
from reparam.errors import Refusal
from reparam.facts import Facts
from reparam.forest import Candidate, Forest, Link, with_layout
from reparam.rules import Step

_SHAPE_READERS = {"reshape_as", "view_as", "expand_as", "type_as"}


@dataclass(frozen=True, eq=False)
class Region:
    """One value that becomes one operator.

    Args:
        value: The value.
        base: What the new operator reads, directly or through what remains of the path.
        form: The value's form over the base, laid out as the new operator needs it.
        main: The link whose place the new operator takes.
        path: The links from the base to the value.
        dying: The nodes that nobody reads any more, the value included.
        before: Cost of the dying nodes.
        after: Cost of the new operator.
        converts: Whether the base may hold integers, which the dying nodes made floats.
    """

    value: fx.Node
    base: fx.Node
    form: AffineConv
    main: Link
    path: tuple[Link, ...]
    dying: frozenset[fx.Node]
    before: Cost
    after: Cost
    converts: bool = False

    @property
    def collapses(self) -> bool:
        """Whether every other link of the path becomes the identity where it stands."""
        return all(link.value in self.dying for link in self.path)


@dataclass
class Decision:
    """What the planner found for one graph.

    Args:
        regions: The values that become one operator, in the order of the graph.
        refused: For each value that stays, the reason why.
    """

    regions: list[Region] = field(default_factory=list)
    refused: dict[fx.Node, Refusal] = field(default_factory=dict)


class _Planner:
    def __init__(
        self,
        graph: fx.Graph,
        steps: Mapping[fx.Node, Step],
        facts: Facts,
        banned: Mapping[tuple[fx.Node, fx.Node], Refusal],
    ) -> None:
        self.graph = graph
        self.banned = banned
        self.facts = facts
        self.steps = steps
        self.forest = Forest(steps, facts)
        self.readers = {node: set(node.users) for node in graph.nodes}
        self.dead = set(facts.unread)
        self.candidates: dict[fx.Node, list[Candidate]] = {}
        self.stops: dict[fx.Node, Refusal] = {}
        self.best: dict[fx.Node, Cost] = {}
        self.area: dict[fx.Node, float] = {}

    # -- Costs ----------------------------------------------------------------------------------

    def node_cost(self, node: fx.Node) -> Cost:
        """What a node costs per position as it stands."""
        step = self.steps.get(node)
        if isinstance(step, AffineConv):
            return form_cost(step)
        link = self.forest.links.get(node)
        if link is not None and link.form is None:
            return NOTHING
        if step is None or isinstance(step, Refusal):
            return NOTHING
        return Cost(operators=1)

    def positions(
        self, nodes: Collection[fx.Node], value: fx.Node, form: AffineConv, placed: fx.Node
    ) -> tuple[dict[fx.Node, float], float]:
        """How many positions each node has, at least, and how many the new operator.

        With example inputs these are the true numbers. Else they are relative: to one position of
        the value or, since a transposed convolution counts per input, of its input.

        Args:
            nodes: The dying nodes.
            value: The value.
            form: Its new form.
            placed: The value that has the positions of the new operator.
        """
        if value in self.facts.shapes:
            known = {node: self._known_positions(node) for node in nodes}
            if not form.transposed:
                return known, _count(self.facts.shapes[placed], form)
            return known, max(known[node] for node in nodes if self._transposed(node))
        least = {value: 1.0}
        for node in sorted(nodes, key=self.facts.order.__getitem__, reverse=True):
            step = self.steps.get(node)
            ratio = 1.0
            if isinstance(step, AffineConv) and not step.transposed:
                for axis in step.axes or ():
                    ratio *= least_positions(axis, transposed=False)
            for operand in node.all_input_nodes:
                least[operand] = max(least.get(operand, 0.0), least.get(node, 0.0) * ratio)
        if not form.transposed:
            return least, 1.0
        longer = prod(least_positions(axis, transposed=True) for axis in form.axes or ())
        below = self._below_transposed(nodes, value)
        return {node: longer if node in below else 1.0 for node in nodes}, 1.0

    def _known_positions(self, node: fx.Node) -> float:
        step = self.steps.get(node)
        form = step if isinstance(step, AffineConv) else None
        source = form.base if form is not None and form.transposed else node
        shape = self.facts.shapes.get(source) if isinstance(source, fx.Node) else None
        return 0.0 if shape is None else _count(shape, form)

    def _transposed(self, node: fx.Node) -> bool:
        step = self.steps.get(node)
        return isinstance(step, AffineConv) and step.transposed

    def _below_transposed(self, nodes: Collection[fx.Node], value: fx.Node) -> set[fx.Node]:
        """The nodes that read the result of a transposed convolution, the value among them."""
        found: set[fx.Node] = set()
        pending = [value]
        while pending:
            node = pending.pop()
            if node in found or node not in nodes or self._transposed(node):
                continue
            found.add(node)
            pending.extend(node.all_input_nodes)
        return found

    # -- Liveness -------------------------------------------------------------------------------

    def dying(self, candidate: Candidate, value: fx.Node, *, metadata: bool) -> set[fx.Node]:
        """The nodes that nobody reads once the value is rewritten.

        Args:
            candidate: The form that replaces the value.
            value: The value.
            metadata: Whether reading only a shape counts as reading.
        """
        inner = {node for link in candidate.path for node in link.inner}
        gone = {value}
        for node in sorted(inner - gone, key=self.facts.order.__getitem__, reverse=True):
            if all(
                reader in gone
                or reader in self.dead
                or reader in self.facts.asserted
                or (not metadata and _reads_shape_only(reader, node))
                for reader in self.readers[node]
            ):
                gone.add(node)
        return gone

    # -- Candidates -----------------------------------------------------------------------------

    def region(self, candidate: Candidate, value: fx.Node) -> Region | Refusal:
        """Turn a candidate into a region, or say why it is not worth it or not safe."""
        form = candidate.form
        if (value, candidate.base) in self.banned:
            return self.banned[value, candidate.base]
        if form.identity:
            return Refusal("it changes nothing and costs nothing")
        if form.in_channels is None:
            return Refusal("the number of its channels is not known")
        problem = unsupported(form)
        if problem is not None:
            return problem
        if form.diagonal:
            return Refusal("a scale and a shift alone are no cheaper as a convolution")
        moved = [
            link for link in candidate.path if link.form is not None and not link.form.diagonal
        ]
        gone = self.dying(candidate, value, metadata=len(moved) > 1)
        collapses = all(link.value in gone for link in candidate.path)
        if collapses:
            main = self._main(candidate)
            if isinstance(main, Refusal):
                return main
        else:
            main = candidate.path[-1]
            if any(link.form is None for link in candidate.path):
                return Refusal(self._other_readers(candidate, gone))
        if main.form is not None and main.form.axes is not None and form.pointwise:
            form = with_layout(form, len(main.form.axes))
        problem = self._effects(candidate, value, gone, main)
        if problem is not None:
            return problem
        placed = _placed(candidate, main) if collapses else value
        positions, own = self.positions(gone, value, form, placed)
        before = sum(
            (self.node_cost(node).times(positions.get(node, 0.0)) for node in gone), start=NOTHING
        )
        after = form_cost(form).times(own)
        if not (before - after).saves:
            if not collapses and before.operators <= after.operators:
                return Refusal(self._other_readers(candidate, gone))
            return Refusal(
                "one operator instead would cost more: "
                f"{_ratio(after.multiply_adds, before.multiply_adds)} multiply-adds, "
                f"{after.operators} instead of {before.operators} operators"
            )
        return Region(
            value,
            candidate.base,
            form,
            main,
            candidate.path,
            frozenset(gone),
            before,
            after,
            converts=not holds_floats(candidate.base, self.facts),
        )

    def _main(self, candidate: Candidate) -> Link | Refusal:
        """The link whose place the new operator takes: the dearest that it can stand in for."""
        eligible: list[tuple[Cost, int, Link]] = []
        crossed = False
        for index, link in enumerate(candidate.path):
            if link.form is None:
                crossed = True
                continue
            if crossed and not candidate.form.pointwise:
                continue
            if not self._may_move(candidate, index):
                continue
            eligible.append((form_cost(link.form), -index, link))
        if not eligible:
            return Refusal("an operator between lets scales pass, but no mixing of channels")
        return max(eligible, key=lambda entry: entry[:2])[2]

    def _may_move(self, candidate: Candidate, main: int) -> bool:
        """Whether the other links may move to the main one across the views between them."""
        for index, link in enumerate(candidate.path):
            if link.form is None or index == main or link.form.diagonal:
                continue
            low, high = min(index, main), max(index, main)
            if any(
                between.commuting is not None and between.commuting.scales_only
                for between in candidate.path[low:high]
            ):
                return False
        return True

    def _other_readers(self, candidate: Candidate, gone: set[fx.Node]) -> str:
        for link in reversed(candidate.path):
            if link.value not in gone:
                others = sorted(
                    str(reader) for reader in self.readers[link.value] - gone - self.dead
                )
                return f"{link.value} is also read by {', '.join(others[:3])}"
        return "a value between is read elsewhere"

    def _effects(
        self, candidate: Candidate, value: fx.Node, gone: set[fx.Node], main: Link
    ) -> Refusal | None:
        """Refuse if somebody writes to what the region reads between its reading and now."""
        facts, order = self.facts, self.facts.order
        place = order[main.value if main.value in gone else value]
        inner = {node for link in candidate.path for node in link.inner}
        for node in inner:
            for operand in node.all_input_nodes:
                last = order[node] - 1
                if operand is candidate.base:
                    last = max(last, place - 1)
                if facts.write_between(operand, order[operand], last, ignoring=gone):
                    return Refusal(f"{operand} is written to in place before it is read")
        # The new value has memory of its own; nobody may rely on the old one's aliases.
        if facts.write_between(value, order[value], len(order), ignoring=gone):
            for member in facts.alias_class(value):
                if (
                    order[member] < order[value]
                    and member not in gone
                    and any(order[user] > order[value] for user in member.users)
                ):
                    return Refusal(f"{value} shares memory with {member} and is written to later")
        return None

    # -- The walk -------------------------------------------------------------------------------

    def prepare(self) -> None:
        """List the candidates and what is gained from each value upwards."""
        for node in self.graph.nodes:
            link = self.forest.links.get(node)
            if link is None:
                self.area[node] = 1.0
                continue
            strides = prod(axis.stride for axis in (link.form.axes or ())) if link.form else 1
            above = self.area.get(link.base, 1.0)
            transposed = link.form is not None and link.form.transposed
            self.area[node] = above * strides if transposed else above / strides
            found: list[Candidate] = []
            if link.form is not None:
                for candidate in self.forest.candidates(node):
                    if isinstance(candidate, Refusal):
                        self.stops[node] = candidate
                        break
                    found.append(candidate)
            self.candidates[node] = found
            self.best[node] = self._best(node, link, found)

    def _best(self, node: fx.Node, link: Link, found: list[Candidate]) -> Cost:
        best = self.best.get(link.base, NOTHING)
        if len(link.inner) > 1:
            kept = [self.best.get(arg, NOTHING) for arg in node.all_input_nodes]
            best = max([best, *kept])
        for candidate in found:
            region = self.region(candidate, node)
            if isinstance(region, Region):
                best = max(best, self._worth(region))
        return best

    def _worth(self, region: Region) -> Cost:
        """What a region gains, with what can still be gained above it."""
        unit = region.base if region.form.transposed else region.value
        scale = 1.0 if region.value in self.facts.shapes else self.area[unit]
        gain = (region.before - region.after).times(scale)
        survivor = region.base
        for link in region.path:
            if link.value not in region.dying:
                survivor = link.value
        return gain + self.best.get(survivor, NOTHING)

    def decide(self) -> Decision:
        """Walk back from the outputs and rewrite what gains."""
        decision = Decision()
        for node in reversed(list(self.graph.nodes)):
            if node in self.dead or node not in self.forest.links:
                continue
            region, reason = self._choose(node)
            if region is None:
                if reason is not None:
                    decision.refused[node] = reason
                continue
            decision.regions.append(region)
            self._rewrite(region)
        for node, refusal in self.forest.refused.items():
            if node not in self.dead and node not in decision.refused:
                decision.refused[node] = refusal
        for node in list(decision.refused):
            if node in self.dead:
                del decision.refused[node]
        decision.regions.reverse()
        return decision

    def _choose(self, node: fx.Node) -> tuple[Region | None, Refusal | None]:
        link = self.forest.links[node]
        if link.form is None:
            return None, None
        keep = self.best.get(link.base, NOTHING)
        if len(link.inner) > 1:
            keep = max([keep, *(self.best.get(arg, NOTHING) for arg in node.all_input_nodes)])
        chosen: Region | None = None
        reason: Refusal | None = None
        worth = keep
        for candidate in self.candidates[node]:
            region = self.region(candidate, node)
            if isinstance(region, Refusal):
                if len(candidate.path) > 1 or len(link.inner) > 1:
                    reason = reason or region
                continue
            value = self._worth(region)
            if value > worth or (chosen is None and value >= worth):
                chosen, worth = region, value
        if chosen is not None or link.form.identity:
            return chosen, None
        return None, reason or self._why_not(node, link)

    def _why_not(self, node: fx.Node, link: Link) -> Refusal | None:
        if node in self.stops:
            return self.stops[node]
        if not link.form or (not link.form.diagonal and len(link.inner) == 1):
            return None  # an operator that stands for itself: nothing to fuse it with
        if link.base in self.forest.refused:
            return self.forest.refused[link.base]
        return Refusal(f"it follows {_describe(link.base)}, which is not affine")

    def _rewrite(self, region: Region) -> None:
        for node in region.dying - {region.value}:
            self.dead.add(node)
        for node in region.dying:
            for operand in node.all_input_nodes:
                self.readers[operand].discard(node)
        self.readers[region.base].add(region.value)


def decide(
    graph: fx.Graph,
    steps: Mapping[fx.Node, Step],
    facts: Facts,
    banned: Mapping[tuple[fx.Node, fx.Node], Refusal],
) -> Decision:
    """Plan one graph.

    Args:
        graph: The flat graph.
        steps: What each operator does to the forms of its operands.
        facts: What is known of the graph.
        banned: Regions, by value and base, that must not be, and why.
    """
    planner = _Planner(graph, steps, facts, banned)
    planner.prepare()
    return planner.decide()


def _placed(candidate: Candidate, main: Link) -> fx.Node:
    """The last value before an operator that may change the number of positions."""
    placed = main.value
    for link in candidate.path[candidate.path.index(main) + 1 :]:
        if link.commuting is not None and link.commuting.scales_only:
            break
        placed = link.value
    return placed


def _reads_shape_only(reader: fx.Node, node: fx.Node) -> bool:
    if reads_metadata(reader):
        return True
    return (
        reader.op == "call_method"
        and reader.target in _SHAPE_READERS
        and bool(reader.args)
        and reader.args[0] is not node
    )


def _count(shape: Iterable[int], form: AffineConv | None) -> float:
    """Positions of a value: its elements but for the channels."""
    sizes = list(shape)
    axes = None if form is None else form.axes
    if axes is not None and len(axes) < len(sizes):
        del sizes[-len(axes) - 1]
    elif len(sizes) > 1:
        del sizes[1]
    return float(max(prod(sizes), 1))


def _ratio(after: float, before: float) -> str:
    return f"{after / before:.1f} x the" if before else f"{after:,.0f} more"


def _describe(node: fx.Node) -> str:
    if node.op == "placeholder":
        return f"the input {node.name}"
    return f"{node.name}"
