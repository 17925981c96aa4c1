"""Whether nobody but some operators reads a value: what others read has to stay as it is."""

from __future__ import annotations

from collections.abc import Set

from torch import fx

from reparam.capture import reads_shape_only
from reparam.errors import Refusal
from reparam.planning.appraiser import Appraiser
from reparam.planning.dominators import Link


def alone(link: Link, appraiser: Appraiser) -> bool:
    """Whether nobody else reads what is computed on the way to a link's value."""
    between = (node for node in link.inner if node is not link.value)
    return all(appraiser.readers_of_value(node) <= set(link.inner) for node in between)


def is_read_only_by(readers: Set[fx.Node], value: fx.Node, appraiser: Appraiser) -> bool:
    """Whether nobody but some operators reads a value, and not only its shape."""
    idle = appraiser.facts.asserted
    return all(
        reader in readers
        or reader in appraiser.dead
        or reader in idle
        or reads_shape_only(reader, value)
        for reader in appraiser.readers[value]
    )


def behind_identities(
    value: fx.Node, readers: Set[fx.Node], appraiser: Appraiser
) -> fx.Node | Refusal:
    """What a value is but for identities; a refusal if others read any of them, too."""
    node = appraiser.current(value)
    while is_read_only_by(readers, node, appraiser):
        link = appraiser.forest.links.get(node)
        if link is None or link.form is None or not link.form.identity:
            return node
        readers, node = {node}, appraiser.current(link.base)
    others = sorted(map(str, appraiser.readers_of_value(node) - readers))
    return Refusal(f"{node} is also read by {', '.join(others[:3])}")
