"""What the planner decides on: values that become one operator."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter

from torch import fx

from reparam.algebra import AffineConv, Norm, operators
from reparam.errors import Refusal
from reparam.planning.cost_functions import Basis, Cost
from reparam.planning.dominators import Link
from reparam.rules import Commuting


@dataclass(frozen=True, eq=False)
class Rows:
    """A value that is computed of what the rows of a linear layer are when reshaped.

    Args:
        base: What it is computed of.
        value: The value.
        form: Its form over the base.
        shape: The channels and the positions of the base, which are in one row.
        times: How many of these are in one row.
        lengths: How many positions the value has of each.
        checking: The reshape of the base, if that is only taken to have these channels and
            positions, before which it is checked.
    """

    base: fx.Node
    value: fx.Node
    form: AffineConv
    shape: tuple[int, ...]
    times: int = 1
    lengths: int = 1
    checking: fx.Node | None = None

    @property
    def positions(self) -> int:
        """How many positions the value has for one row."""
        return self.lengths * self.times


@dataclass(frozen=True, eq=False)
class Absorbed:
    """A term that leaves a sum and joins another term of it.

    Args:
        total: The sum that has one term less.
        kept: Its other operand, which stands for it from now on.
        term: The term.
        adjustments: What had joined the term before.
        rows: How the term comes from the rows of a linear layer that it joins; None if it is over
            the same value as what it joins.
    """

    total: fx.Node
    kept: fx.Node
    term: fx.Node
    adjustments: tuple[Absorbed | Share, ...] = ()
    rows: Rows | None = None

    @property
    def positions(self) -> float:
        """How many positions the term has for one of what it joins."""
        return 1.0 if self.rows is None else float(self.rows.positions)


@dataclass(frozen=True, eq=False)
class Share:
    """The part of a scale and a shift that one operand of a sum, or of a concatenation, takes in.

    Args:
        link: The link of the scale; its base is the sum or the concatenation, or an identity of it.
        within: The sums and concatenations that the operand is scaled for.
        channels: The channels of the whole that the operand is; None for a sum.
        total: How many channels the whole has; None for a sum.
        shifts: Whether the operand takes the constant in, too.
    """

    link: Link
    within: tuple[fx.Node, ...]
    channels: range | None = None
    total: int | None = None
    shifts: bool = True


@dataclass(frozen=True, eq=False)
class Gathered:
    """A scale and a shift of one of the values side by side that an operator reads.

    Args:
        link: The link of the scale. What reads the scale reads what it scaled from now on.
        form: What it does to the channels of the values side by side.
        channels: Which of these it scales: the value may be there several times.
        between: What lies between the scale and the operator, and is computed without the scale.
    """

    link: Link
    form: AffineConv
    channels: tuple[range, ...]
    between: frozenset[fx.Node]


@dataclass(frozen=True, eq=False)
class Multiple:
    """Values side by side that are multiplied where they are added up, since all had one of them.

    Args:
        value: The values side by side.
        total: The addition that reads them.
        times: The factor. The parts that become operators are divided by it.
    """

    value: fx.Node
    total: fx.Node
    times: int


@dataclass(frozen=True, eq=False)
class Host:
    """The operator of a chain of scales that takes the others in.

    Args:
        link: Its link.
        norm: The norm that it is; None if it is a convolution.
    """

    link: Link
    norm: Norm | None = None


@dataclass(frozen=True, eq=False)
class FoldedNorm:
    """A norm whose weight and bias are taken in by all that reads it.

    Args:
        value: The value of the norm.
        base: What the norm reads.
        ending: Its weight and bias, as a form over what it has normalised.
        bare: The values without them from now on: the norm's own, and views of it.
        paths: The links of the norm, then of each of its readers.
        mains: For each of these the value in whose place the new operator comes.
    """

    value: fx.Node
    base: fx.Node
    ending: AffineConv
    bare: frozenset[fx.Node]
    paths: tuple[tuple[Link, ...], ...]
    mains: tuple[fx.Node, ...]


@dataclass(frozen=True, eq=False)
class Region:
    """One value that becomes one operator.

    Args:
        value: The value.
        base: What the new operator reads, directly or through what remains of the path.
        form: The value's form over the base, laid out as the new operator needs it.
        plain: The same form, laid out as the base is.
        main: The link whose place the new operator takes.
        path: The links from the base to the value.
        dying: The nodes that nobody reads any more, the value included.
        before: Cost of the dying nodes.
        after: Cost of the new operator.
        gain: What is saved beyond what was saved before.
        basis: How it is known that it is none the dearer.
        converts: Whether the base may hold integers, which the dying nodes made floats.
        shared: The dying nodes that die for other regions too.
        adjustments: What the new operator does to the value besides, in order: it adds terms of the
            sum that the value is a term of, and scales what other regions scale, too.
        together: The nodes that die for all regions that take in one scale, or one norm's weight.
        norm: The norm whose weight and bias take the form in, so that it becomes a norm; None if it
            becomes a convolution or a linear layer.
        folded: The norm that it becomes, or reads, if the weight of that goes into its readers.
        gathered: The scales of parts of the base that the new operator takes in, the last first.
        multiple: What its value is a part of, if that is multiplied afterwards.
    """

    value: fx.Node
    base: fx.Node
    form: AffineConv
    plain: AffineConv
    main: Link
    path: tuple[Link, ...]
    dying: frozenset[fx.Node]
    before: Cost
    after: Cost
    gain: Cost
    basis: Basis = Basis.COUNTED
    converts: bool = False
    shared: frozenset[fx.Node] = frozenset()
    adjustments: tuple[Absorbed | Share, ...] = ()
    together: frozenset[fx.Node] = frozenset()
    norm: Norm | None = None
    folded: FoldedNorm | None = None
    gathered: tuple[Gathered, ...] = ()
    multiple: Multiple | None = None

    @property
    def key(self) -> Hashable:
        """What tells this region from others, also from one of another plan."""
        terms = tuple(absorbed.term for absorbed in self.absorbed)
        scales = tuple(scale.value for scale in self.scales)
        folded = None if self.folded is None else self.folded.value
        return self.value, self.base, self.form.axes, terms, scales, folded

    @property
    def source(self) -> fx.Node:
        """What the new operator reads: the base, or what remains of the path before its place."""
        return self.main.base if self.collapses else self.base

    @property
    def kept(self) -> fx.Node:
        """The dying node whose value is still there, under whatever name."""
        last = self.adjustments[-1] if self.adjustments else None
        if isinstance(last, Share):
            return last.link.value
        return self.value if last is None else last.total

    @property
    def absorbed(self) -> list[Absorbed]:
        """The terms that the new operator adds."""
        return [term for term in _flat(self.adjustments) if isinstance(term, Absorbed)]

    @property
    def checked(self) -> list[tuple[Rows, fx.Node]]:
        """The values whose sizes are taken for granted, and the reshapes that check them."""
        rows = (absorbed.rows for absorbed in self.absorbed if absorbed.rows is not None)
        return [(each, each.checking) for each in rows if each.checking is not None]

    @property
    def shares(self) -> list[Share]:
        """The scales that the new operator takes in with others."""
        return [share for share in _flat(self.adjustments) if isinstance(share, Share)]

    @property
    def scales(self) -> list[Link]:
        """The links of the scales beside the path that the new operator takes in."""
        return [*(scale.link for scale in self.gathered), *(share.link for share in self.shares)]

    @property
    def unscaled(self) -> frozenset[fx.Node]:
        """The values before the new operator that lack what it takes in from now on."""
        bare = frozenset[fx.Node]() if self.folded is None else self.folded.bare
        return bare.union(*(scale.between.union(scale.link.inner) for scale in self.gathered))

    @property
    def links(self) -> tuple[Link, ...]:
        """All links that become one operator: the path, and the scales beside it."""
        return (*self.path, *self.scales)

    @property
    def paths(self) -> tuple[tuple[Link, ...], ...]:
        """The path, or those of a norm whose weight moves and of all that reads it."""
        return (self.path,) if self.folded is None else self.folded.paths

    @property
    def changing(self) -> tuple[Link, ...]:
        """All links of which none becomes an operator without the others."""
        return tuple(dict.fromkeys(chain(self.links, *self.paths)))

    @property
    def mains(self) -> set[fx.Node]:
        """The values in whose places the operators of these come."""
        return {self.main.value} if self.folded is None else {*self.folded.mains}

    @property
    def inner(self) -> frozenset[fx.Node]:
        """The nodes between the base and the value, the value included."""
        return frozenset(chain.from_iterable(link.nodes for link in self.path))

    @property
    def own(self) -> set[fx.Node]:
        """What the new operator stands for or moved across, but for links that become nothing."""
        besides = [link for link in self.scales if link not in self.path]
        becoming = self.links if self.collapses else besides
        nothing = {
            node
            for link in becoming
            if link is not self.main and link.form is not None
            for node in link.inner
        }
        own = {*self.inner, *self.dying} - nothing
        own.update(*(scale.between for scale in self.gathered))
        # A norm's weight moves across the views of it.
        return own if self.folded is None or self.norm is None else own | self.folded.bare

    @property
    def collapses(self) -> bool:
        """Whether every other link of the path becomes the identity where it stands."""
        return all(link.value in self.dying for link in self.path)


def sized_as_operand(base: fx.Node, path: tuple[Link, ...], main: Link) -> fx.Node:
    """A value of the size that a new operator reads, but for the channels.

    It takes the place of the main link; the others of the path become the identity.
    """
    before = path[: path.index(main)]
    return main.base if any(link.form is None for link in before) else base


def _flat(adjustments: Iterable[Absorbed | Share]) -> Iterator[Absorbed | Share]:
    """All adjustments in order, those of absorbed terms before the terms."""
    for adjustment in adjustments:
        if isinstance(adjustment, Absorbed):
            yield from _flat(adjustment.adjustments)
        yield adjustment


def main_link(own: Collection[Link], path: tuple[Link, ...], form: AffineConv) -> Link | Refusal:
    """The link whose place the new operator takes: the dearest of its own that it can replace.

    Its own are those that no other region takes in.
    """
    barriers = [(at, link.commuting) for at, link in enumerate(path) if link.commuting is not None]
    eligible: list[tuple[tuple[int, int], Link]] = []
    crossed = False
    for index, link in enumerate(path):
        if link.form is None:
            crossed = True
        elif link in own and (form.pointwise or not crossed) and _may_move(path, index, barriers):
            eligible.append(((link.form.multiply_adds, operators(link.form)), link))
    if not eligible:
        return Refusal("an operator between lets scales pass, but no constant or no mixing")
    return max(eligible, key=itemgetter(0))[1]


def _may_move(path: tuple[Link, ...], main: int, barriers: Sequence[tuple[int, Commuting]]) -> bool:
    """Whether the other links may move to the main one across the operators between them."""
    for barrier, commuting in barriers:
        for index, moved in enumerate(path):
            if moved.form is None or not min(index, main) < barrier < max(index, main):
                continue
            if commuting.scales_only and not moved.form.diagonal:
                return False
            if not commuting.constants and moved.form.has_bias:
                return False
    return True


def placed_at(path: tuple[Link, ...], main: Link) -> fx.Node:
    """The last value, from the main link on, before what may change the number of positions."""
    placed = main.value
    for link in path[path.index(main) + 1 :]:
        if link.commuting is not None and link.commuting.scales_only:
            break
        placed = link.value
    return placed
