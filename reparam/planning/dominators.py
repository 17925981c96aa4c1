"""The affine dominators of a graph: for each value the nearest value it is an affine form over.

A unary operator depends on its operand; a sum depends on the nearest value that all its branches
come from. Following these links from a value gives all bases that its form may be written over.
Where branches meet is found by depth, as in Cooper, Harvey and Kennedy's "A simple, fast dominance
algorithm" (2001), and without recursion: chains may be thousands of operators long.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import chain, islice

from torch import fx

from reparam.algebra import AffineConv, AffineStack, AffineSum, spread
from reparam.analysis import Facts
from reparam.capture import assign, assignments
from reparam.errors import Refusal
from reparam.rules import Commuting, Normalized, Several, Stacked, Step, Unscalable

LONGEST = 8
"""How many links that do something a candidate spans; what is fused becomes one and extends it."""

_MOST_CROSSED = 24
"""How many views and the like it crosses: windows are made of six, and of as many to undo them."""


@dataclass(frozen=True, eq=False)
class Link:
    """How one value depends on its nearest affine dominator.

    Args:
        value: The value.
        base: The dominator.
        form: The value's form over the base; None if the operator only lets forms pass.
        commuting: How the operator moves the channel axis, if it lets forms pass.
        inner: The nodes between base and value, the value included, in order.
        crossed: Operators between that let forms pass, the nearest to the value first; the form
            acts before them.
        joined: What lay between, too, before a whole path was made one link. The value is computed
            without it now, but what it read, it read where it stood.
    """

    value: fx.Node
    base: fx.Node
    form: AffineConv | None
    commuting: Commuting | None
    inner: tuple[fx.Node, ...]
    crossed: tuple[Commuting, ...] = ()
    joined: tuple[fx.Node, ...] = ()

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """All nodes between base and value in the graph as it was, the value included."""
        return (*self.joined, *self.inner)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A value written over one of its bases; its path begins with the link at the base."""

    base: fx.Node
    form: AffineConv
    path: tuple[Link, ...]

    @property
    def inner(self) -> frozenset[fx.Node]:
        """The nodes between the base and the value, the value included."""
        return frozenset(chain.from_iterable(link.inner for link in self.path))

    @property
    def crossed(self) -> frozenset[fx.Node]:
        """The operators that the form crosses: they stay where they are."""
        return frozenset(link.value for link in self.path if link.form is None)

    @property
    def moves_kernels(self) -> bool:
        """Whether more than a scale and a shift joins another operator: shapes may change."""
        kernels = [link for link in self.path if link.form is not None and not link.form.diagonal]
        return len(kernels) > 1

    @property
    def joins(self) -> int:
        """How many operators that do something the form joins."""
        return sum(link.form is not None and not link.form.identity for link in self.path)


class Forest:
    """The links of a graph."""

    def __init__(self, steps: Mapping[fx.Node, Step], facts: Facts) -> None:
        self.links: dict[fx.Node, Link] = {}
        self.passing: dict[fx.Node, Link] = {}
        self.refused: dict[fx.Node, Refusal] = {}
        self._depth: dict[fx.Node, int] = {}
        self._order = facts.order
        self._several = {n for n, step in steps.items() if isinstance(step, Several | Stacked)}
        for node, step in steps.items():
            link = self._link(node, step, facts)
            if isinstance(step, Commuting) and step.refusal is not None:
                self.refused[node] = step.refusal
            if isinstance(link, Refusal):
                self.refused[node] = link
            elif link is not None:
                self.links[node] = link
                self._depth[node] = self._depth.get(link.base, 0) + 1
                commuting = None if link.form is None else _commuting(link.form)
                if commuting is not None:
                    self.passing[node] = replace(link, form=None, commuting=commuting)

    def _link(self, node: fx.Node, step: Step, facts: Facts) -> Link | Refusal | None:
        """How a value depends on its nearest dominator; None if it is no form over any."""
        if isinstance(step, Refusal):
            return step
        if isinstance(step, Stacked | Several | Normalized | Unscalable):
            return None
        if isinstance(step, Commuting):
            operands = facts.operands(node)
            return Link(node, operands[0], None, step, (node,)) if operands else None
        if isinstance(step, AffineConv):
            if not isinstance(step.base, fx.Node):
                return Refusal("its rule returned a form over nothing; build it from x")
            if node.target is assign:
                return Link(node, step.base, step, None, assignments(node))
            return Link(node, step.base, step, None, (*self.through(node, (step.base,)), node))
        return self._joined(node, step)

    def through(self, node: fx.Node, bases: Collection[fx.Node]) -> list[fx.Node]:
        """What a node reads its bases through: ``x.chunk(2)``, ``x[:, 1]`` with its axis back."""
        indirect = set(bases).isdisjoint(node.all_input_nodes)
        return [
            operand
            for operand in node.all_input_nodes
            if (operand in self._several or indirect)
            and not set(bases).isdisjoint(operand.all_input_nodes)
        ]

    def _joined(self, node: fx.Node, step: AffineSum | AffineStack) -> Link | Refusal | None:
        """The link of a sum, or of values side by side: over the nearest value all come from."""
        operands = [term.base for term in step.terms if isinstance(term.base, fx.Node)]
        base: fx.Node | None = operands[0]
        for operand in operands[1:]:
            base = None if base is None else self.meet(base, operand)
        if isinstance(step, AffineStack) and base is None:
            return None  # most concatenations are of other values
        if base is None:
            return Refusal("its branches do not come from one value by affine operators")
        nearest = self._over(base, node, step, operands)
        if isinstance(nearest, Link):
            return nearest
        # Padding that fits no sum by itself may fit what it pads: look further up.
        for further in islice(self._up(base), LONGEST):
            link = self._over(further.base, node, step, operands)
            if isinstance(link, Link):
                return link
        return nearest

    def _over(
        self,
        base: fx.Node,
        node: fx.Node,
        step: AffineSum | AffineStack,
        operands: Sequence[fx.Node],
    ) -> Link | Refusal:
        """The link of a sum, or of values side by side, over one value that all come from."""
        branches: list[AffineConv] = []
        inner = {node, *self.through(node, operands)}
        for term, operand in zip(step.terms, operands, strict=True):
            branch, between = self.branch(operand, base, term)
            inner.update(between)
            if isinstance(branch, Refusal):
                return branch
            branches.append(branch)
        whole = step.join(branches)
        if isinstance(whole, Refusal):
            return whole
        return Link(node, base, whole, None, tuple(sorted(inner, key=self._order.__getitem__)))

    def _up(self, value: fx.Node, base: fx.Node | None = None) -> Iterator[Link]:
        """The links from a value towards the root of its tree, up to a base."""
        while value is not base and value in self.links:
            link = self.links[value]
            yield link
            value = link.base

    def branch(
        self, value: fx.Node, base: fx.Node, term: AffineConv
    ) -> tuple[AffineConv | Refusal, list[fx.Node]]:
        """The form of a term of a sum over a base of its operand, and the nodes between."""
        path = list(self._up(value, base))
        between = [node for link in path for node in link.nodes]
        views = [link.commuting for link in path if link.commuting is not None]
        if any(link.crossed for link in path) or not all(view.copies for view in views):
            return Refusal("a view lies between its branches and their common value"), between
        branch: AffineConv | Refusal = replace(term, base=base)
        for crossed in _climb(path, replace(term, base=base)):
            branch = crossed
        return branch, between

    def root(self, value: fx.Node) -> fx.Node:
        """The furthest value that a value is affine over."""
        while value in self.links:
            value = self.links[value].base
        return value

    def meet(self, first: fx.Node, second: fx.Node) -> fx.Node | None:
        """The nearest value that both come from."""
        depth = self._depth
        while first is not second:
            if depth.get(first, 0) < depth.get(second, 0):
                first, second = second, first
            if first not in self.links:
                return None
            first = self.links[first].base
        return first

    def candidates(self, value: fx.Node) -> Iterator[Candidate | Refusal]:
        """A value's forms over its bases, the nearest first; a refusal ends them.

        Where pools or paddings lie between, there are two kinds: what takes them into the form, and
        what leaves them where they are and crosses them.
        """
        links = self._within_reach(value)
        if not links:
            return
        refusal = yield from _forms(links)
        across = self._across(links)
        crossed = next((n for n, link in enumerate(links) if across[n] is not link), None)
        if crossed is not None:
            for form in _forms(across):
                # Only beyond what is crossed is there anything new.
                if isinstance(form, Candidate) and len(form.path) > crossed + 1:
                    yield form
        if refusal is not None:
            yield refusal

    def forms(self, value: fx.Node) -> Iterator[Candidate]:
        """A value's forms over its bases, the nearest first."""
        return (form for form in self.candidates(value) if isinstance(form, Candidate))

    def over(self, value: fx.Node, base: fx.Node, reach: int = LONGEST) -> list[Candidate]:
        """A value's forms over one of its bases: pools between are taken in, or else crossed."""
        links = self._within_reach(value, reach)
        ways = [links] if links == self._across(links) else [links, self._across(links)]
        forms = (form for way in ways for form in _forms(way))
        return [form for form in forms if isinstance(form, Candidate) and form.base is base]

    def _across(self, links: Sequence[Link]) -> list[Link]:
        """The links above a value, but that the pools and paddings among them are crossed."""
        return [*links[:1], *(self.passing.get(link.value, link) for link in links[1:])]

    def _within_reach(self, value: fx.Node, reach: int = LONGEST) -> list[Link]:
        """The links above a value that its forms may span."""
        links: list[Link] = []
        spanned = crossed = 0
        for link in self._up(value):
            links.append(link)
            crossed += link.form is None
            spanned += link.form is not None and not link.form.identity
            if spanned == reach or crossed == _MOST_CROSSED:
                break
        return links

    def contract(
        self, value: fx.Node, base: fx.Node, form: AffineConv, path: Sequence[Link]
    ) -> None:
        """Make one link of a whole path, so that longer ones come within reach."""
        crossed = tuple(link.commuting for link in reversed(path) if link.commuting is not None)
        between = dict.fromkeys(chain.from_iterable(link.nodes for link in path))
        joined = tuple(node for node in between if node is not value)
        self.links[value] = Link(value, base, form, None, (value,), crossed, joined)
        self.passing.pop(value, None)

    def forget(self, value: fx.Node) -> None:
        """Take a value as one that is no form over any other."""
        self.links.pop(value, None)
        self.passing.pop(value, None)

    def cut(self, changed: Set[fx.Node], spare: fx.Node) -> None:
        """Forget the links made of values that changed, but for the one whose own link is right."""
        for value, link in list(self.links.items()):
            if value is not spare and not changed.isdisjoint(link.nodes):
                del self.links[value]
                self.passing.pop(value, None)


def _forms(links: Sequence[Link]) -> Generator[Candidate | Refusal, None, Refusal | None]:
    """The forms of a value over the bases of its links; returns why there are no more."""
    refusal: Refusal | None = None
    path: list[Link] = []
    for link, crossed in zip(links, _climb(links, None), strict=False):
        path.append(link)
        if isinstance(crossed, Refusal):
            refusal = crossed
        else:
            refusal = None
            yield Candidate(link.base, crossed, tuple(reversed(path)))
    return refusal


def _commuting(form: AffineConv) -> Commuting | None:
    """How a pool or a padding lets maps of the channels pass: it treats all channels alike.

    A factor crosses it. A constant does if the taps sum to one and no zeros are padded::

        sum over t of K[t] * (a * x[o + t] + c) = a * (sum over t of K[t] * x[o + t]) + c
    """
    axes = form.axes
    if not axes or form.groups is not None or form.pointwise or form.transposed or form.has_bias:
        return None
    modes = {axis.mode for axis in axes if axis.padded}
    if "value" in modes or not form.weights.fixed:
        return None
    kernel, _ = form.weights.evaluate()
    keeps = "zeros" not in modes and abs(float(kernel.sum()) - 1) < 1e-12

    def input_axis(axis: int, channels: int | None) -> int | Refusal:
        del channels
        return axis if axis == -len(axes) - 1 else Refusal("a pool along the channels")

    return Commuting(input_axis, scales_only=True, constants=keeps)


def _climb(links: Iterable[Link], form: AffineConv | None) -> Iterator[AffineConv | Refusal]:
    """Move a form from base to base, up a path; None is the form of the path's value over itself.

    A law may hold for two links together although it does not for the nearer one alone: a causal
    kernel and its padding, for example. So a refused link is joined with those above it.

    Yields:
        For each link, the nearest first, the form over its base, or why there is none yet.
    """
    waiting: AffineConv | None = None
    for link in links:
        commuting = link.crossed if link.commuting is None else (link.commuting,)
        if commuting and (link.form is None or form is not None):
            crossed = _cross(commuting, form) if waiting is None else Refusal("a view of a kernel")
            if link.form is None or isinstance(crossed, Refusal):
                yield crossed
            if isinstance(crossed, Refusal):
                return
            form = crossed
        if link.form is None:
            continue
        inner = link.form if waiting is None else link.form.then(waiting)
        if isinstance(inner, Refusal):
            yield inner
            return
        composed = inner if form is None else inner.then(form)
        if isinstance(composed, Refusal):
            waiting = inner
            yield composed
            continue
        form, waiting = replace(composed, base=link.base), None
        yield form


def _cross(crossed: Iterable[Commuting], form: AffineConv | None) -> AffineConv | Refusal:
    """Move a form across operators that let forms pass, the last one first."""
    if form is None:
        return Refusal("a view is no convolution")
    for commuting in crossed:
        if commuting.copies:
            continue
        if not form.pointwise:
            return Refusal("a kernel with several taps after a view")
        if form.axes is None:
            continue
        channel_axis = -len(form.axes) - 1
        shared = form.diagonal and form.columns is None
        places = commuting.spread(channel_axis, form.in_channels) if shared else None
        if places is not None:
            form = spread(form, places.size, places.run)
        axis = (
            commuting.input_axis(channel_axis, form.in_channels) if places is None else places.axis
        )
        if isinstance(axis, Refusal):
            return axis
        form = form.with_axes(-axis - 1)
    return form
