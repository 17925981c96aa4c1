"""Whether what reads a norm has weights that something else uses, without that norm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from torch import fx

from reparam.analysis import Facts
from reparam.errors import Refusal
from reparam.modules import fetch
from reparam.planning.appraiser import Appraiser
from reparam.planning.regions import Region


@dataclass(frozen=True)
class Folding:
    """The wish that norms leave their weights to what reads them.

    Args:
        tied: Identities of the parameters that several modules hold: what they are in one of
            these, they are in all.
    """

    tied: frozenset[int]


def keep_unshared(
    folded: dict[fx.Node, list[Region]], appraiser: Appraiser, folding: Folding
) -> dict[fx.Node, Refusal]:
    """Drop the norms whose readers have weights that are used without them; say why.

    A block that is called several times uses them with the same norm in each call.
    """
    facts, users = appraiser.facts, _users(appraiser)
    refused: dict[fx.Node, Refusal] = {}
    while True:
        weights = {
            reader.value: frozenset(_held(own.inner, facts))
            for own, *readers in folded.values()
            for reader in readers
        }
        dropped = {
            norm: reason
            for norm, (_, *readers) in folded.items()
            if (reason := _used_elsewhere(readers, weights, users, appraiser, folding)) is not None
        }
        if not dropped:
            return refused
        refused |= dropped
        for norm in dropped:
            del folded[norm]


def _used_elsewhere(
    readers: Iterable[Region],
    weights: Mapping[fx.Node, frozenset[int]],
    users: Mapping[int, set[fx.Node]],
    appraiser: Appraiser,
    folding: Folding,
) -> Refusal | None:
    """Why readers of a norm cannot have other weights, if so.

    For each reader of any norm ``weights`` tells the tensors of its norm, and for each tensor
    ``users`` tells what uses it.
    """
    for region in readers:
        if region.value in appraiser.fused:
            continue  # it has weights of its own already
        held = set(_held((region.value,), appraiser.facts))
        sharing = set[fx.Node]().union(*(users[tensor] for tensor in held))
        alike = all(weights.get(node) == weights[region.value] for node in sharing)
        if not alike or not folding.tied.isdisjoint(held):
            return Refusal(f"the weight of {region.value}, which reads it, is used elsewhere, too")
    return None


def _users(appraiser: Appraiser) -> dict[int, set[fx.Node]]:
    """For each parameter and buffer the operators that use it and stay."""
    users: dict[int, set[fx.Node]] = defaultdict(set)
    facts = appraiser.facts
    left_out = appraiser.dead | facts.sources.keys()
    for node in facts.order:
        if node.op not in ("placeholder", "get_attr") and node not in left_out:
            for tensor in _held((node,), facts):
                users[tensor].add(node)
    return users


def _held(nodes: Iterable[fx.Node], facts: Facts) -> Iterator[int]:
    """Identities of the parameters and buffers that operators use."""
    for node in nodes:
        if node.op == "call_module":
            module = fetch(facts.root, str(node.target))
            yield from map(id, chain(module.parameters(), module.buffers()))
        read = (facts.sources.get(operand, ()) for operand in node.all_input_nodes)
        for path in chain.from_iterable(read):
            yield id(fetch(facts.root, path))
