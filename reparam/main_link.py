"""Which link of a path the new operator takes the place of, so that the others do nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import fx

from reparam.affine import AffineConv
from reparam.costs import operators
from reparam.errors import Refusal
from reparam.forest import Link


def main_link(own: Collection[Link], path: tuple[Link, ...], form: AffineConv) -> Link | Refusal:
    """The link whose place the new operator takes: the dearest of its own that it can replace.

    Args:
        own: The links that no other region takes in.
        path: All links from the base to the value.
        form: The form of the new operator.
    """
    barriers = [index for index, link in enumerate(path) if link.commuting is not None]
    eligible: list[tuple[tuple[int, int], int, Link]] = []
    crossed = False
    for index, link in enumerate(path):
        if link.form is None:
            crossed = True
        elif link in own and (form.pointwise or not crossed) and _may_move(path, index, barriers):
            size = link.form.multiply_adds, operators(link.form)
            eligible.append((size, -index, link))
    if not eligible:
        return Refusal("an operator between lets scales pass, but no constant or no mixing")
    return max(eligible, key=lambda entry: entry[:2])[2]


def _may_move(path: tuple[Link, ...], main: int, barriers: Sequence[int]) -> bool:
    """Whether the other links may move to the main one across the operators between them."""
    for barrier in barriers:
        commuting = path[barrier].commuting
        for index, moved in enumerate(path):
            if moved.form is None or not min(index, main) < barrier < max(index, main):
                continue
            if commuting is not None and commuting.scales_only and not moved.form.diagonal:
                return False
            if commuting is not None and not commuting.constants and moved.form.has_bias:
                return False
    return True


def placed_at(path: tuple[Link, ...], main: Link) -> fx.Node:
    """The last value before an operator that may change the number of positions.

    Args:
        path: All links from the base to the value.
        main: The link whose place the new operator takes.
    """
    placed = main.value
    for link in path[path.index(main) + 1 :]:
        if link.commuting is not None and link.commuting.scales_only:
            break
        placed = link.value
    return placed
