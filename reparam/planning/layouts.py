"""Whether somebody sees that a value lies otherwise in memory than it did.

What was computed after a transposition becomes that view itself. Nothing moves if it was laid out
as the view is anyway: torch lays out arithmetic as its operand lies, and a batch norm, too, if that
is in order or has the channels last. And where it moves, nobody sees it of a value that has one
position per channel: if the batch is outermost, such a value lies the same in every layout, but for
strides of axes of size 1, which no view depends on.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from reparam.analysis import Facts, reads_layout
from reparam.capture import Trait, has_known_name, is_of_torch, traits
from reparam.errors import Refusal
from reparam.modules import fetch
from reparam.planning.dominators import Link
from reparam.planning.regions import Region

_VIEWS = Trait.PERMUTES | Trait.INDEXES


def layout_is_read(region: Region, facts: Facts) -> Refusal | None:
    """The value lies otherwise in memory than it did, and somebody's result depends on that."""
    path = region.path
    # What was computed after a transposition or an index becomes that view itself.
    moves = (
        region.adjustments
        or region.gathered
        or any(
            link.commuting is not None or len(link.inner) > 1 or Trait.INDEXES in traits(link.value)
            for link in path
        )
    )
    behind = path[path.index(region.main) + 1 :]
    views = _becomes_a_view(region, behind, facts)
    anew = any(Trait.OWN_LAYOUT in traits(link.value) for link in path)
    if views or anew or (moves and facts.by_layout):
        outermost = views and _batch_stays(behind, facts)
        return _problem(region, facts, views=views, anew=anew, outermost=outermost)
    return None


def _becomes_a_view(region: Region, behind: Sequence[Link], facts: Facts) -> bool:
    """Whether a value will be a view, transposed or a part, of what is laid out otherwise now."""
    views: list[Link] = []
    becomes = False
    for link in behind:
        if link.commuting is None:
            becomes = becomes or (bool(views) and not _lies_as(link, region.main, views, facts))
        elif traits(link.value) & _VIEWS:
            views.append(link)
        elif link.commuting.copies:
            views, becomes = [], False
        else:
            becomes = becomes or bool(views)
    return becomes or bool(views and region.adjustments)


def _lies_as(link: Link, main: Link, views: Sequence[Link], facts: Facts) -> bool:
    """Whether the value of a link lies in memory as the transposed value that it reads."""
    if len(link.inner) > 1 or any(Trait.INDEXES in traits(view.value) for view in views):
        return False
    known = traits(link.value, facts.root)
    if Trait.KEEPS_FORMAT not in known:
        as_it_is = Trait.ALIASES in known and Trait.MAY_COPY not in known
        return Trait.COMPUTES in known or (as_it_is and Trait.KEEPS_SHAPE in known)
    order = _order(views[-1], facts) if len(views) == 1 else None
    in_order = Trait.LAYS_OUT_ANEW in traits(main.value, facts.root)
    return in_order and order is not None and order == _channels_last(len(order))


def _channels_last(rank: int) -> list[int] | None:
    """The order of axes that brings the last one behind the batch, for images and volumes."""
    return [0, rank - 1, *range(1, rank - 1)] if rank in (4, 5) else None


def _order(view: Link, facts: Facts) -> list[int] | None:
    """The order in which a transposition puts the axes of what it reads."""
    rank = facts.ranks.get(view.value)
    if rank is None or view.commuting is None:
        return None
    axes = [view.commuting.input_axis(axis, None) for axis in range(-rank, 0)]
    order = [axis + rank for axis in axes if isinstance(axis, int)]
    return order if len(order) == rank else None


def _batch_stays(behind: Sequence[Link], facts: Facts) -> bool:
    """Whether the first axis is the outermost one in memory, as the value lies and as it did."""
    if any(len(link.inner) > 1 for link in behind):
        return False
    views = [link for link in behind if traits(link.value) & _VIEWS]
    return all(
        Trait.PERMUTES in traits(view.value) and (_order(view, facts) or [-1])[0] == 0
        for view in views
    )


def _problem(
    region: Region, facts: Facts, *, views: bool, anew: bool, outermost: bool
) -> Refusal | None:
    """Why its value may not lie otherwise in memory than it did.

    ``views`` says that it may become a transposed one, of which a view can fail; ``anew`` that it
    surely lies otherwise, in an order of which no view fails; ``outermost`` that the first axis is
    the outermost one in either case.
    """
    pending, seen = [(region.kept, outermost)], {(region.kept, outermost)}
    while pending:
        value, ordered = pending.pop()
        settled = ordered and _has_one_position(value, facts)
        for reader in value.users:
            # Of what the whole model returns no layout is promised; a part's result is read on.
            outside = reader.op == "output"
            if reader in region.dying or (outside and not (views and facts.inner)):
                continue
            known = traits(reader, facts.root)
            harmless = settled and bool(known & (Trait.MUST_VIEW | Trait.MAY_COPY))
            if reader in facts.by_layout and not harmless:
                return Refusal(f"its value may lie otherwise in memory, which matters for {reader}")
            asks = views or (anew and Trait.MUST_VIEW not in known)
            if asks and (outside or (reads_layout(reader, facts.root) and not harmless)):
                return Refusal("its value's layout in memory would change, which others may read")
            if reader in facts.numbers or Trait.LAYS_OUT_ANEW in known:
                continue
            following = reader, ordered and _stays_ordered(reader, value, facts, settled=settled)
            if following not in seen:
                seen.add(following)
                pending.append(following)
    return None


def _has_one_position(value: fx.Node, facts: Facts) -> bool:
    """Whether a value has no more than two axes that may be larger than 1: batch and channels."""
    rank = facts.ranks.get(value)
    return rank is not None and rank - facts.ones.get(value, 0) <= 2


def _stays_ordered(reader: fx.Node, value: fx.Node, facts: Facts, *, settled: bool) -> bool:
    """Whether the first axis is the outermost one in what is computed of a value of that kind.

    Of a value that lies the same in every layout, whatever is computed does so, too.
    """
    if reader.op == "call_module":
        of_torch = is_of_torch(type(fetch(facts.root, str(reader.target))))
    else:
        of_torch = reader.op == "call_method" or has_known_name(reader.target)
    known = traits(reader, facts.root)
    if not of_torch or settled:
        return of_torch
    if known & (Trait.KEEPS_SHAPE | Trait.BROADCASTS):
        return True
    return _has_one_position(reader, facts) and not facts.memory.may_share(reader, value)
