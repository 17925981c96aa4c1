"""What becomes of one candidate: which nodes die, what is saved, and whether it is safe.

A node dies if nobody reads it any more. A candidate is worth it if one operator costs less than the
nodes that die, and safe if nobody writes in place to what it reads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from math import prod

from torch import fx

from reparam.algebra.affine import AffineConv
from reparam.algebra.lowering import unsupported
from reparam.analysis.channels import holds_type
from reparam.analysis.facts import Facts
from reparam.capture.operators import computes, indexes, reads_shape_only
from reparam.errors import Refusal
from reparam.planning.cost_functions import MACS, Measure, Weigher
from reparam.planning.costs import NOTHING, Cost, least_positions, most_positions
from reparam.planning.dominators import Candidate, Forest, Link
from reparam.planning.hazards import hazard
from reparam.planning.regions import Absorbed, Region, Share, main_link, placed_at, sized_as_operand
from reparam.rules import Several, Step


class Appraiser:
    """Weighs candidates, given what has been decided so far.

    Args:
        graph: The flat graph.
        steps: What each operator does to the forms of its operands.
        facts: What is known of the graph.
        banned: Regions, by value and base, that must not be, and why.
        measure: By what it weighs.
    """

    def __init__(
        self,
        graph: fx.Graph,
        steps: Mapping[fx.Node, Step],
        facts: Facts,
        banned: Mapping[tuple[fx.Node, fx.Node], Refusal],
        measure: Measure = MACS,
    ) -> None:
        self.banned = banned
        self.facts = facts
        self.steps = steps
        self.forest = Forest(steps, facts)
        self.weigher = Weigher(measure, steps, facts)
        self.readers = {node: set(node.users) for node in graph.nodes}
        self.dead = set(facts.unread)
        self.fused: dict[fx.Node, Region] = {}
        self.stand_ins: dict[fx.Node, fx.Node] = {}
        self.revived: set[fx.Node] = set()

    # -- Costs ----------------------------------------------------------------------------------

    def node_cost(self, node: fx.Node, positions: float) -> Cost:
        """What a node costs as it stands.

        Args:
            node: The node.
            positions: How many positions it has.
        """
        if node in self.fused:
            region = self.fused[node]
            operand = sized_as_operand(region.base, region.path, region.main)
            return self.weigher.form(region.form, positions, operand)
        step = self.steps.get(node)
        if isinstance(step, AffineConv):
            first = node.args[0] if node.args else None
            result = isinstance(first, fx.Node) and isinstance(self.steps.get(first), Several)
            part = indexes(node) and (not result or step.columns is not None)
            free = (step.identity and not computes(node)) or part
            return self.weigher.node(node, positions, free=free)
        link = self.forest.links.get(node)
        if link is not None and link.form is None:
            return NOTHING
        if step is None or isinstance(step, Refusal | Several):
            return NOTHING
        return self.weigher.node(node, positions, free=False)

    def positions(
        self,
        nodes: Collection[fx.Node],
        values: Sequence[fx.Node],
        form: AffineConv,
        placed: fx.Node,
        crossed: Collection[fx.Node],
    ) -> tuple[dict[fx.Node, float], float]:
        """How many positions each node has, at least, and how many the new operator.

        With example inputs these are the true numbers. Else they are relative: to one position of
        the value or, since a transposed convolution counts per input, of its input.

        Args:
            nodes: The dying nodes.
            values: The value, and others of the same size.
            form: Its new form.
            placed: The value that has the positions of the new operator.
            crossed: The values between that stay where they are.
        """
        if values[0] in self.facts.shapes:
            known = {node: self._known_positions(node) for node in nodes}
            if not form.transposed:
                return known, _count(self.facts.shapes[placed], form.out_channels)
            source = form.base if isinstance(form.base, fx.Node) else placed
            return known, _count(self.facts.shapes[source], form.in_channels)
        least = dict.fromkeys(values, 1.0)
        for node in sorted(nodes, key=self.facts.order.__getitem__, reverse=True):
            form_here = None if node in crossed else self._form(node)
            ratio = 1.0
            if form_here is not None and form_here.transposed:
                # It counts per position of what it reads, of which there are fewer.
                least[node] = least.get(node, 0.0) / prod(map(most_positions, form_here.axes or ()))
            elif form_here is not None:
                for axis in form_here.axes or ():
                    ratio *= least_positions(axis, transposed=False)
            for operand in self.inputs(node):
                least[operand] = max(least.get(operand, 0.0), least.get(node, 0.0) * ratio)
        if not form.transposed:
            return least, 1.0
        longer = prod(least_positions(axis, transposed=True) for axis in form.axes or ())
        below = self._below_transposed(nodes, values)
        return {node: longer if node in below else 1.0 for node in nodes}, 1.0

    def _known_positions(self, node: fx.Node) -> float:
        form = self._form(node)
        source = form.base if form is not None and form.transposed else node
        shape = self.facts.shapes.get(source) if isinstance(source, fx.Node) else None
        if shape is None or form is None:
            return 0.0 if shape is None else 1.0
        return _count(shape, form.in_channels if form.transposed else form.out_channels)

    def _transposed(self, node: fx.Node) -> bool:
        form = self._form(node)
        return form is not None and form.transposed

    def _form(self, node: fx.Node) -> AffineConv | None:
        """The form by which a node is computed as it stands."""
        if node in self.fused:
            return self.fused[node].form
        step = self.steps.get(node)
        return step if isinstance(step, AffineConv) else None

    def inputs(self, node: fx.Node) -> Sequence[fx.Node]:
        """What a node reads as it stands."""
        return (self.fused[node].base,) if node in self.fused else node.all_input_nodes

    def _below_transposed(
        self, nodes: Collection[fx.Node], values: Sequence[fx.Node]
    ) -> set[fx.Node]:
        """The nodes that read the result of a transposed convolution, the values among them."""
        found: set[fx.Node] = set()
        pending = [*values]
        while pending:
            node = pending.pop()
            if node in found or node not in nodes or self._transposed(node):
                continue
            found.add(node)
            pending.extend(self.inputs(node))
        return found

    # -- Liveness -------------------------------------------------------------------------------

    def dying(
        self, candidates: Sequence[tuple[fx.Node, Candidate]], *, metadata: bool
    ) -> set[fx.Node]:
        """The nodes that nobody reads once some values are rewritten.

        Args:
            candidates: The values and the forms that replace them.
            metadata: Whether reading only a shape counts as reading.
        """
        gone = {value for value, _ in candidates}
        inner = {
            node for _, candidate in candidates for link in candidate.path for node in link.inner
        }
        for node in sorted(inner - gone, key=self.facts.order.__getitem__, reverse=True):
            if all(
                reader in gone
                or reader in self.dead
                or reader in self.facts.asserted
                or (not metadata and reads_shape_only(reader, node))
                for reader in self.readers[node]
            ):
                gone.add(node)
        return gone

    def readers_of_value(self, node: fx.Node) -> set[fx.Node]:
        """Who reads a value, and not only its shape."""
        return {
            reader
            for reader in self.readers[node] - self.dead - self.facts.asserted
            if not reads_shape_only(reader, node)
        }

    # -- Candidates -----------------------------------------------------------------------------

    def region(self, candidate: Candidate, value: fx.Node) -> Region | Refusal:
        """Turn a candidate into a region, or say why it is not worth it or not safe."""
        gone = self.dying([(value, candidate)], metadata=moves_kernels(candidate))
        region = self.draft(candidate, value, gone)
        if isinstance(region, Refusal):
            return region
        if region.gain.saves:
            return hazard(region, self.facts, self.stand_ins) or region
        current, after = region.after + region.gain, region.after
        if not region.collapses and current.operators <= after.operators:
            return Refusal(self._other_readers(candidate, gone))
        return Refusal(
            "one operator instead would cost more: "
            f"{_ratio(after.amount, current.amount)} {self.weigher.measure.unit}, "
            f"{after.operators} instead of {current.operators} operators"
        )

    def draft(
        self,
        candidate: Candidate,
        value: fx.Node,
        gone: Collection[fx.Node],
        shared: Collection[fx.Node] = (),
        counted: Collection[fx.Node] = (),
        absorbed: tuple[Absorbed, ...] = (),
    ) -> Region | Refusal:
        """Turn a candidate into a region whether it is worth it or not.

        Args:
            candidate: The form that replaces the value.
            value: The value.
            gone: What nobody reads any more.
            shared: Nodes of these that die for other regions too.
            counted: Nodes of these that another region has counted as saved.
            absorbed: Terms that the new operator adds besides.
        """
        form = candidate.form
        if (value, candidate.base) in self.banned:
            return self.banned[value, candidate.base]
        if form.identity:
            return Refusal("it changes nothing and costs nothing")
        problem = unsupported(form)
        if problem is not None:
            return problem
        if form.in_channels is None:
            return Refusal("the number of its channels is not known")
        if form.diagonal:
            return Refusal("a scale and a shift alone are no cheaper as a convolution")
        path = candidate.path
        if not absorbed:
            path = tuple(part for link in path for part in self._parts(link))
        taken = [self.fused[node] for node in self.fused.keys() & gone]
        common = frozenset(shared).union(
            *(region.dying if region.value in shared else region.shared for region in taken)
        )
        collapses = all(link.value in gone for link in candidate.path)
        if collapses:
            main = main_link({link for link in path if link.value not in common}, path, form)
            if isinstance(main, Refusal):
                return main
        else:
            main = path[-1]
            if any(link.form is None for link in path):
                return Refusal(self._other_readers(candidate, gone))
        if main.form is not None and main.form.axes is not None and form.pointwise:
            form = form if form.axes is None else form.with_axes(len(main.form.axes))
        placed = placed_at(path, main) if collapses else value
        crossed = {link.value for link in candidate.path if link.form is None}
        terms = [term.term for term in absorbed]
        positions, own = self.positions(gone, (value, *terms), form, placed, crossed)
        current = before = NOTHING
        for node in sorted(gone, key=self.facts.order.__getitem__):
            if node in crossed or node in counted or node in self.dead:
                continue
            fused = self.fused.get(node)
            if fused is not None and node in self.facts.shapes:
                now = fused.after  # in true numbers, wherever it is placed
            else:
                now = self.node_cost(node, positions.get(node, 0.0))
            current += now
            before += now if fused is None else fused.before
        anew = set(gone).difference(self.dead, self.fused, crossed, counted)
        constants = Cost(operators=self.facts.computed_for(anew, self.dead.union(gone)))
        current, before = current + constants, before + constants
        dtype = form.dtype or (None if form.like is None else form.like.dtype)
        converts = not holds_type(candidate.base, dtype, self.facts)
        operand = sized_as_operand(candidate.base, path if collapses else (main,), main)
        after = self.weigher.form(form, own, operand) + Cost(operators=int(converts))
        dying = frozenset(gone).union(*(region.dying for region in taken))
        return Region(
            value,
            candidate.base,
            form,
            candidate.form,
            main,
            path,
            dying,
            before,
            after,
            current - after,
            converts,
            common,
            self._adjustments(value, taken, absorbed),
            frozenset[fx.Node]().union(*(region.together for region in taken)),
        )

    def _adjustments(
        self, value: fx.Node, taken: Sequence[Region], absorbed: tuple[Absorbed, ...]
    ) -> tuple[Absorbed | Share, ...]:
        """What a new operator does besides, with what those do that it replaces."""
        own = self.fused[value].adjustments if value in self.fused else ()
        terms = {term.term for term in absorbed}
        inner = (region for region in taken if region.value is not value)
        others = (region.adjustments for region in inner if region.value not in terms)
        joined = (
            replace(term, adjustments=self.fused[term.term].adjustments)
            if term.term in self.fused
            else term
            for term in absorbed
        )
        return (*chain.from_iterable(others), *own, *joined)

    def _parts(self, link: Link) -> tuple[Link, ...]:
        """The links of a path, those of a region in place of one that stands for it."""
        fused = self.fused.get(link.value)
        return fused.path if fused is not None and fused.collapses else (link,)

    def adopt(self, region: Region) -> None:
        """Take a region as done: whatever is weighed from now on builds on it."""
        fresh = region.dying - self.dead
        for node in fresh:
            for operand in node.all_input_nodes:
                self.readers[operand].discard(node)
        for node in fresh - {region.value}:
            self.dead.add(node)
            self.fused.pop(node, None)
        for absorbed in region.absorbed:  # what reads the sum reads its other operand from now on
            self._stand_in(absorbed.kept, absorbed.total)
        self.readers[region.base].add(region.value)
        self.fused[region.value] = region
        self.forest.contract(region.value, region.base, region.plain, region.path)
        changed = {absorbed.total for absorbed in region.absorbed}
        for share in region.shares:  # what reads the scale reads what it scaled
            self._stand_in(self.current(share.link.base), share.link.value)
            changed |= {*share.within, share.link.value}
        if changed:
            self.forest.cut(changed | {region.value}, spare=region.value)

    def _stand_in(self, kept: fx.Node, gone: fx.Node) -> None:
        if gone not in self.stand_ins:
            self.stand_ins[gone] = kept
            self.readers[kept] = self.readers[gone] | (self.readers[kept] - {gone})

    def current(self, node: fx.Node) -> fx.Node:
        """What stands for a value now."""
        while node in self.stand_ins:
            node = self.stand_ins[node]
        return node

    def revive(self) -> bool:
        """Look at what nobody reads, but modules pass; say whether there is anything new."""
        before = set(self.revived)
        for node in sorted(self.facts.passed - before, key=self.facts.order.__getitem__):
            if self.dead.isdisjoint(node.all_input_nodes):
                self.revived.add(node)
                self.dead.discard(node)
        return self.revived != before

    def _other_readers(self, candidate: Candidate, gone: Collection[fx.Node]) -> str:
        for link in reversed(candidate.path):
            if link.value not in gone:
                others = sorted(
                    str(reader) for reader in self.readers[link.value].difference(gone, self.dead)
                )
                return f"{link.value} is also read by {', '.join(others[:3])}"
        return "a value between is read elsewhere"


def moves_kernels(candidate: Candidate) -> bool:
    """Whether more than a scale and a shift joins another operator, so that shapes may change."""
    moved = [link for link in candidate.path if link.form is not None and not link.form.diagonal]
    return len(moved) > 1


def _count(shape: Iterable[int], channels: int | None) -> float:
    """Positions of a value: its elements but for the channels."""
    return max(prod(shape) / (channels or 1), 1.0)


def _ratio(after: float, before: float) -> str:
    return f"{after / before:.1f} x the" if before else f"{after:,.3g} more"
