"""The formula of a region: the paths from its base to its value, and how they add up.

A value is written as a sum of branches, or as branches side by side::

    v = K_1 * x + K_2 * x + c        v = [K_1 * x; K_2 * x] + c

What acts on a sum acts on each of its terms, so a branch is all that happens on one way from the
base to the value.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial, reduce

from torch import fx

from reparam.algebra import AffineConv, AffineStack, AffineSum, identity
from reparam.analysis import Part
from reparam.errors import Refusal
from reparam.planning import Absorbed, Region, Share
from reparam.report.rows import operator_kind, place

_MOST_BRANCHES = 12

_MOST_NAMES = 3

Way = tuple[tuple[fx.Node, AffineConv], ...]
"""Operators, each with what it does to the value that flows along this way."""


@dataclass(frozen=True)
class Joined:
    """Branches that become one value.

    Args:
        ways: For each branch its operators, from the base to the value.
        total: How many branches there are, those left out included.
        stacked: Whether some lie side by side along the channels and are not added.
    """

    ways: tuple[Way, ...] = ()
    total: int = 0
    stacked: bool = False

    def then(self, node: fx.Node, form: AffineConv | None) -> Joined:
        """The same branches, each with one operator more if that does anything."""
        if form is None or form.identity:
            return self
        ways = tuple((*way, (node, form)) for way in self.ways)
        return Joined(ways, self.total, self.stacked)

    def beside(self, other: Joined, *, stacked: bool = False) -> Joined:
        """These branches and others."""
        ways = (*self.ways, *other.ways)[:_MOST_BRANCHES]
        stacked = stacked or self.stacked or other.stacked
        return Joined(ways, self.total + other.total, stacked)


@dataclass(frozen=True)
class Branch:
    """One way from the base of a region to its value.

    Args:
        name: What tells it from the other branches.
        operators: What it runs, in this order, with its place.
        way: The same as nodes of the graph, with what they do.
    """

    name: str
    operators: tuple[tuple[str, str], ...]
    way: Way


@dataclass(frozen=True)
class Formula:
    """How the value of a region comes from its base.

    Args:
        branches: The branches.
        left_out: How many more there are.
        stacked: Whether branches lie side by side along the channels.
        constant: Whether a constant is added.
    """

    branches: tuple[Branch, ...]
    left_out: int
    stacked: bool
    constant: bool


def formula(part: Part, region: Region) -> Formula:
    """Write the value of a region over its base.

    Args:
        part: The part of the model.
        region: The region.

    Returns:
        The formula, with a bounded number of branches.
    """
    joined = _adjusted(_ways(part, region.value, region.base), region.adjustments, part, region)
    if region.multiple is not None:
        part_of = identity().scale(1 / region.multiple.times)
        if isinstance(part_of, AffineConv):
            joined = joined.then(region.multiple.value, part_of)
    ways = joined.ways[:_MOST_BRANCHES]
    if region.folded is not None and region.norm is None:
        weight = region.folded.ending.with_axes(len(region.plain.axes or ()))
        ways = tuple(((region.folded.value, weight), *way) for way in ways)
    for scale in region.gathered:
        ways = tuple(((scale.link.value, scale.form), *way) for way in ways)
    named = [
        tuple((operator_kind(part.trace, node), place(part.trace, node)) for node, _ in way)
        for way in ways
    ]
    names = _names([[where for _, where in operators] for operators in named])
    branches = tuple(
        Branch(name, operators, way)
        for name, operators, way in zip(names, named, ways, strict=True)
    )
    return Formula(branches, joined.total - len(ways), joined.stacked, region.form.has_bias)


def composed(branch: Branch) -> AffineConv | Refusal | None:
    """The form of one branch by itself.

    A law may hold for two operators together although it does not for the later one alone, so one
    that is refused is joined with those before it.

    Args:
        branch: The branch.

    Returns:
        The form; a Refusal where the branch is no convolution by itself; None if it is the base.
    """
    whole: AffineConv | None = None
    waiting: AffineConv | None = None
    refusal: Refusal | None = None
    for _, form in reversed(branch.way):
        inner = form if waiting is None else form.then(waiting)
        if isinstance(inner, Refusal):
            return inner
        joined = inner if whole is None else inner.then(whole)
        if isinstance(joined, Refusal):
            waiting, refusal = inner, joined
        else:
            whole, waiting, refusal = joined, None, None
    return refusal or whole


def _ways(part: Part, value: fx.Node, base: fx.Node) -> Joined:
    """All ways from a base to a value; without recursion, since chains may be long."""
    found: dict[Hashable, Joined] = {base: Joined(((),), 1)}
    for node in _between(part, value, base):
        step = part.steps.get(node)
        inner = [
            found[operand].then(node, form)
            for operand, form in _operands(node, step)
            if operand in found
        ]
        if inner:
            stacked = isinstance(step, AffineStack) and len(inner) > 1
            found[node] = reduce(partial(Joined.beside, stacked=stacked), inner)
    return found.get(value, Joined())


def _operands(node: fx.Node, step: object) -> list[tuple[Hashable, AffineConv | None]]:
    """What a value is made of, each with what is done to it besides adding and stacking."""
    if isinstance(step, AffineConv):
        return [(step.base, step)]
    if isinstance(step, AffineSum | AffineStack):
        return [(term.base, term) for term in step.terms]
    return [(operand, None) for operand in node.all_input_nodes]


def _between(part: Part, value: fx.Node, base: fx.Node) -> list[fx.Node]:
    """The nodes from a base to a value, in the order of the graph."""
    order = part.facts.order
    found: set[fx.Node] = set()
    pending = [value]
    while pending:
        node = pending.pop()
        if node not in found and order[node] > order[base]:
            found.add(node)
            pending.extend(node.all_input_nodes)
    return sorted(found, key=order.__getitem__)


def _adjusted(
    joined: Joined, adjustments: Iterable[Absorbed | Share], part: Part, region: Region
) -> Joined:
    """The branches with the scales and the terms that join them."""
    for one in adjustments:
        if isinstance(one, Share):
            for node in one.link.inner:
                step = part.steps.get(node)
                joined = joined.then(node, step if isinstance(step, AffineConv) else None)
        else:
            term = _ways(part, one.term, region.base if one.rows is None else one.rows.base)
            joined = joined.beside(_adjusted(term, one.adjustments, part, region))
    return joined


def _names(places: Sequence[Sequence[str]]) -> list[str]:
    """A short name for each branch, from the places of its operators.

    Args:
        places: For each branch the places of its operators.
    """
    paths = [
        [where.replace(" (", ".").rstrip(")").split(".") for where in branch] for branch in places
    ]
    shared = len(_common([path[:-1] for branch in paths for path in branch]))
    names: list[str] = []
    for branch in paths:
        short = [path[shared:] for path in branch]
        shown = [".".join(path) for path in short[:_MOST_NAMES]]
        if len(short) > _MOST_NAMES:
            shown.append("…")
        names.append(".".join(_common(short)) or " → ".join(shown) or "identity")
    if len(set(names)) < len(names):
        return [f"{name} #{number}" for number, name in enumerate(names, 1)]
    return names


def _common(paths: Sequence[Sequence[str]]) -> list[str]:
    """The parts that all paths begin with."""
    common: list[str] = []
    for level in zip(*paths, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return common
