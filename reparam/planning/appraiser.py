"""What becomes of one candidate: which nodes die, what is saved, and whether it is safe.

A node dies if nobody reads it any more. A candidate is worth it if one operator costs less than the
nodes that die::

    gain = sum of the costs of the dying nodes - cost of the new operator

and safe if nobody writes in place to what it reads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from itertools import chain

from torch import fx

from reparam.algebra import AffineConv, unsupported, weights_dtype
from reparam.analysis import Extents, Facts, holds_type
from reparam.capture import Trait, operator_name, reads_shape_only, traits
from reparam.errors import Refusal
from reparam.planning.cost_functions import MACS, NOTHING, Basis, Cost, Measure, Weigher
from reparam.planning.dominators import Candidate, Forest, Link
from reparam.planning.hazards import hazard
from reparam.planning.positions import Positions
from reparam.planning.regions import (
    Absorbed,
    Host,
    Region,
    Share,
    main_link,
    placed_at,
    sized_as_operand,
)
from reparam.rules import Several, Step

_NOTHING_ELSE: Mapping[fx.Node, Sequence[fx.Node]] = {}


_MORE_ELSEWHERE = Refusal("one operator instead may cost more at another size of the input")

_WITHIN_NOISE = Refusal(
    "one operator instead may have more multiply-adds, and what it gains is within the noise of "
    "this machine"
)


class Appraiser:
    """Weighs candidates, given what has been decided so far; banned regions must not be."""

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
        self.extents = Extents(steps, facts)
        self.readers = {node: set(node.users) for node in graph.nodes}
        self.dead = set(facts.unread)
        self.fused: dict[fx.Node, Region] = {}
        self.positions = Positions(steps, facts, self.fused)
        self.stand_ins: dict[fx.Node, fx.Node] = {}
        self.multiplied: set[fx.Node] = set()
        self.revived: set[fx.Node] = set()

    def node_cost(self, node: fx.Node, positions: float) -> Cost:
        """What a node costs as it stands."""
        if node in self.fused:
            region = self.fused[node]
            operand = sized_as_operand(region.base, region.path, region.main)
            return self.weigher.form(region.form, positions, operand)
        step = self.steps.get(node)
        if isinstance(step, AffineConv):
            # A part of the channels is free; one of several results stands for their operator.
            first = node.args[0] if node.args else None
            item = isinstance(first, fx.Node) and isinstance(self.steps.get(first), Several)
            part = _is_view(node) and (not item or step.columns is not None)
            free = part or (step.identity and Trait.COMPUTES not in traits(node))
            return self.weigher.node(node, positions, free=free)
        link = self.forest.links.get(node)
        crossed = link is not None and link.form is None
        if crossed or step is None or isinstance(step, Refusal | Several):
            return NOTHING
        return self.weigher.node(node, positions, free=False)

    def dying(
        self,
        candidates: Sequence[tuple[fx.Node, Candidate]],
        *,
        metadata: bool,
        replaced_by: Mapping[fx.Node, Sequence[fx.Node]] = _NOTHING_ELSE,
    ) -> set[fx.Node]:
        """The nodes that nobody reads once some values are rewritten.

        ``metadata`` says that reading only a shape counts as reading, unless all that is asked of
        the value is true of those that may be read instead.
        """
        gone = {value for value, _ in candidates}
        inner = {node for _, candidate in candidates for node in candidate.inner}
        for node in sorted(inner - gone, key=self.facts.order.__getitem__, reverse=True):
            # Who only asks for a shape may ask the new operator, as long as sizes stay.
            if all(
                reader in gone
                or reader in self.dead
                or reader in self.facts.asserted
                or (not metadata and reads_shape_only(reader, node))
                or self._may_ask_others(reader, node, replaced_by)
                for reader in self.readers[node]
            ):
                gone.add(node)
        return gone

    def _may_ask_others(
        self, reader: fx.Node, node: fx.Node, replaced_by: Mapping[fx.Node, Sequence[fx.Node]]
    ) -> bool:
        """Whether a reader asks only for what is the same of the values that come instead."""
        return node in replaced_by and self.extents.asks_alike(reader, node, replaced_by[node])

    def readers_of_value(self, node: fx.Node) -> set[fx.Node]:
        """Who reads a value, and not only its shape."""
        return {
            reader
            for reader in self.readers[node] - self.dead - self.facts.asserted
            if not reads_shape_only(reader, node)
        }

    def region(self, candidate: Candidate, value: fx.Node) -> Region | Refusal:
        """Turn a candidate into a region, or say why it is not worth it or not safe."""
        gone = self._gone(candidate, value)
        region = self.draft(candidate, value, gone)
        if isinstance(region, Refusal):
            return region
        if region.gain.saves:
            return self.hazard_of(region) or region
        if region.converts and (region.gain + Cost(operators=1)).saves:
            known = region.base in self.facts.dtypes
            return Refusal(
                f"{region.base} {'holds' if known else 'may hold'} integers, which would have to "
                f"become floats first{'' if known else '; pass example_inputs'}"
            )
        if region.basis is Basis.NOISE and region.gain.amount < 0:
            return _WITHIN_NOISE
        current, after = region.after + region.gain, region.after
        if not region.collapses and current.operators <= after.operators:
            return Refusal(self._other_readers(candidate, gone))
        ratio = f"{after.amount:,.3g} more"
        if current.amount:
            ratio = f"{after.amount / current.amount:.1f} x the"
        return Refusal(
            f"one operator instead would cost more: {ratio} {self.weigher.measure.unit}, "
            f"{after.operators} instead of {current.operators} operators"
        )

    def _gone(self, candidate: Candidate, value: fx.Node) -> set[fx.Node]:
        """The nodes that nobody reads once a candidate is taken."""
        ways, links = [(value, candidate)], {link.value for link in candidate.path}
        gone = self.dying(ways, metadata=candidate.moves_kernels)
        if not candidate.moves_kernels or gone >= links:
            return gone
        # If all links go, the values between are the base's or the new one's, whichever link the
        # new operator takes the place of: who asks for sizes that both have may ask these.
        ends = dict.fromkeys(links, (candidate.base, value))
        without_sizes = self.dying(ways, metadata=True, replaced_by=ends)
        return without_sizes if without_sizes >= links else gone

    def hazard_of(self, region: Region) -> Refusal | None:
        """Why a region is not safe, if it is not."""
        return hazard(region, self.facts, self.stand_ins)

    def draft(
        self,
        candidate: Candidate,
        value: fx.Node,
        gone: Collection[fx.Node],
        shared: Collection[fx.Node] = (),
        counted: Collection[fx.Node] = (),
        absorbed: tuple[Absorbed, ...] = (),
        host: Host | None = None,
    ) -> Region | Refusal:
        """Turn a candidate into a region whether it is worth it or not.

        Of what is gone the shared dies for other regions too, and another has saved the counted.
        The operator adds the absorbed terms; the host is the operator that a scale becomes.
        """
        if (problem := self._no_operator(candidate, value, host)) is not None:
            return problem
        path = candidate.path  # of a regrouped sum it is new, whatever its term was before
        if not absorbed:
            path = tuple(part for link in path for part in self.parts(link))
        order = self.facts.order.__getitem__
        taken = [self.fused[node] for node in sorted(self.fused.keys() & gone, key=order)]
        common = frozenset(shared).union(
            *(region.dying if region.value in shared else region.shared for region in taken)
        )
        main = self._main(candidate, path, gone, common, host)
        if isinstance(main, Refusal):
            return main
        form = candidate.form
        if form.pointwise and form.axes is not None and main.form and main.form.axes is not None:
            form = form.with_axes(len(main.form.axes))  # as many as in whose place it comes
        alike = {value: 1.0, **{term.term: term.positions for term in absorbed}}
        crossed = candidate.crossed
        positions, at = self.positions.count(gone, alike, form, placed_at(path, main), crossed)
        current, before = self._costs(gone, positions, crossed.union(counted), alike)
        converts = host is None or host.norm is None or host.norm.affine
        converts &= not holds_type(candidate.base, weights_dtype(form), self.facts)
        after = self._after(form, at, sized_as_operand(candidate.base, path, main), host)
        after += Cost(operators=int(converts))
        gain, basis = self.weigher.gain(current, after)
        if self._bound_to_sizes(value, basis):
            least, of_one = self.positions.at_least(gone, alike, form, crossed)
            anywhere, _ = self._costs(gone, least, crossed.union(counted), alike, relative=True)
            if anywhere.multiply_adds < form.multiply_adds * of_one:
                return _WITHIN_NOISE if basis is Basis.NOISE else _MORE_ELSEWHERE
        return Region(
            value=value,
            base=candidate.base,
            form=form,
            plain=candidate.form,
            main=main,
            path=path,
            dying=frozenset(gone).union(*(region.dying for region in taken)),
            before=before,
            after=after,
            gain=gain,
            basis=basis,
            converts=converts,
            shared=common,
            adjustments=self._adjustments(value, taken, absorbed),
            together=frozenset[fx.Node]().union(*(region.together for region in taken)),
            norm=None if host is None else host.norm,
            gathered=tuple(dict.fromkeys(chain(*(region.gathered for region in taken)))),
            multiple=self.fused[value].multiple if value in self.fused else None,
        )

    def _after(
        self, form: AffineConv, positions: float, operand: fx.Node, host: Host | None
    ) -> Cost:
        """What a new operator costs: one that stays a norm as much as it did."""
        if host is None or host.norm is None:
            return self.weigher.form(form, positions, operand)
        return self.weigher.node(host.link.value, positions, free=False)

    def _no_operator(
        self, candidate: Candidate, value: fx.Node, host: Host | None
    ) -> Refusal | None:
        """Why no operator can take the place of a value, or need not, if so."""
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
        if form.diagonal and host is None:
            return Refusal("a scale and a shift alone are no cheaper as a convolution")
        return None

    def _main(
        self,
        candidate: Candidate,
        path: tuple[Link, ...],
        gone: Collection[fx.Node],
        common: Collection[fx.Node],
        host: Host | None,
    ) -> Link | Refusal:
        """The link whose place the new operator takes: the last one if some of them stay."""
        if host is not None:
            return main_link({host.link}, path, candidate.form)
        if all(link.value in gone for link in candidate.path):
            own = {link for link in path if link.value not in common}
            return main_link(own, path, candidate.form)
        if any(link.form is None for link in path):
            return Refusal(self._other_readers(candidate, gone))
        return path[-1]

    def _bound_to_sizes(self, value: fx.Node, basis: Basis) -> bool:
        """Whether multiply-adds decide, at the sizes of inputs that are but an example."""
        facts, counted = self.facts, self.weigher.measure is MACS or basis is Basis.NOISE
        return counted and value in facts.shapes and value not in facts.fixed

    def _costs(
        self,
        gone: Collection[fx.Node],
        positions: Mapping[fx.Node, float],
        left_out: Set[fx.Node],
        alike: Mapping[fx.Node, float],
        *,
        relative: bool = False,
    ) -> tuple[Cost, Cost]:
        """What dying nodes cost as the graph stands, and what they cost in the model.

        The latter is known per position of each value that became an operator; of those alike, how
        many positions they have for one of the value.
        """
        current = before = NOTHING
        for node in sorted(gone, key=self.facts.order.__getitem__):
            if node in left_out or node in self.dead:
                continue
            region = self.fused.get(node)
            if region is not None and node in self.facts.shapes and not relative:
                now = region.after  # in true numbers, wherever it is placed
            else:
                now = self.node_cost(node, positions.get(node, 0.0))
            current += now
            times = 1.0 if node in self.facts.shapes else alike.get(node, 1.0)
            before += now if region is None else region.before.times(times)
        anew = set(gone).difference(self.dead, self.fused, left_out)
        constants = Cost(operators=self.facts.computed_for(anew, self.dead.union(gone)))
        return current + constants, before + constants

    def _adjustments(
        self, value: fx.Node, taken: Sequence[Region], absorbed: tuple[Absorbed, ...]
    ) -> tuple[Absorbed | Share, ...]:
        """What a new operator does besides, with what those do that it replaces."""
        apart = {value, *(term.term for term in absorbed)}
        inner = (region.adjustments for region in taken if region.value not in apart)
        own = self.fused[value].adjustments if value in self.fused else ()
        joined = (
            replace(term, adjustments=self.fused[term.term].adjustments)
            if term.term in self.fused
            else term
            for term in absorbed
        )
        return (*chain.from_iterable(inner), *own, *joined)

    def parts(self, link: Link) -> tuple[Link, ...]:
        """The links of a path, those of a region in place of one that stands for it."""
        fused = self.fused.get(link.value)
        return fused.path if fused is not None and fused.collapses else (link,)

    def adopt_all(self, regions: Iterable[Region]) -> bool:
        """Take regions as done, each before the next is looked for; say whether there was any."""
        gained = False
        for region in regions:
            self.adopt(region)
            gained = True
        return gained

    def adopt(self, region: Region) -> None:
        """Take a region as done: whatever is weighed from now on builds on it."""
        fresh = region.dying - self.dead
        self._hand_on_askers(region, fresh)
        for node in fresh:
            for operand in node.all_input_nodes:
                self.readers[operand].discard(node)
        for node in fresh - {region.value}:
            self.dead.add(node)
            self.fused.pop(node, None)
        totals = {absorbed.total for absorbed in region.absorbed}
        changed = totals - self.stand_ins.keys()  # what another part's region took in is done
        for absorbed in region.absorbed:  # what reads the sum reads its other operand from now on
            self._stand_in(self.current(absorbed.kept), absorbed.total)
        self.readers[region.base].add(region.value)
        self.fused[region.value] = region
        if region.norm is None or region.norm.affine:
            self.forest.contract(region.value, region.base, region.plain, region.path)
        else:
            self.forest.forget(region.value)
            changed |= region.dying
        for share in region.shares:  # what reads the scale reads what it scaled
            self._stand_in(self.current(share.link.base), share.link.value)
            changed |= {*share.within, share.link.value}
        if region.multiple is not None:
            self.multiplied.add(region.multiple.value)
        for scale in region.gathered:
            self._stand_in(self.current(scale.link.base), scale.link.value)
            changed |= {*scale.between, scale.link.value}
        if changed or totals:
            self.forest.cut(changed | {region.value}, spare=region.value)

    def _hand_on_askers(self, region: Region, fresh: Set[fx.Node]) -> None:
        """Who asks a value that goes for its shape asks what comes in its place from now on.

        Up to the link whose place the new operator takes that is the base, then the new operator.
        """
        place = region.path.index(region.main)
        ends = {
            link.value: region.base if index < place else region.value
            for index, link in enumerate(region.path)
        }
        for node in fresh & ends.keys() - {region.value}:
            asking = self.readers[node] - fresh - self.dead
            self.readers[ends[node]] |= {each for each in asking if reads_shape_only(each, node)}

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


def _is_view(node: fx.Node) -> bool:
    """Whether a part of the channels is taken, or taken several times, without a copy."""
    index = node.args[1:] if Trait.INDEXES in traits(node) else ()
    entries = index[0] if index and isinstance(index[0], tuple) else index
    by_numbers = any(isinstance(entry, list | fx.Node) for entry in entries)
    known = Trait.INDEXES in traits(node) or operator_name(node) in ("unsqueeze", "expand")
    return known and not by_numbers
