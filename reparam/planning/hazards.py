"""Whether a region is safe: nobody writes in place to what it reads, or sees that memory moved."""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

from reparam.analysis.channels import promotes
from reparam.analysis.effects import lays_out_anew, reads_layout
from reparam.analysis.facts import Facts
from reparam.capture.operators import indexes, permutes
from reparam.errors import Refusal
from reparam.planning.regions import Absorbed, Region


def hazard(region: Region, facts: Facts, settled: Collection[fx.Node]) -> Refusal | None:
    """Why a region is not safe: a write to what it reads, a layout or a type that changes.

    Args:
        region: The region.
        facts: What is known of the graph.
        settled: Sums whose terms have left them already.
    """
    path, main = region.path, region.main
    first = next((link for link in path if link.form is not None), main)
    if region.converts and not all(promotes(node) for node in first.inner):
        return Refusal("integers may overflow before they become floats; pass example_inputs")
    base, value, dying = region.base, region.value, region.dying
    order = facts.order
    place = order[main.value if main.value in dying else value]
    inner = {node for link in path for node in link.inner}
    for node in inner:
        for operand in node.all_input_nodes:
            since = order[operand]
            if operand is not base and facts.write_between(
                operand, since, order[node] - 1, ignoring=dying
            ):
                return Refusal(f"{operand} is written to in place before it is read")
    for absorbed in region.absorbed:
        if absorbed.total not in settled and _would_share_memory(absorbed, dying, facts):
            return Refusal(f"{absorbed.total} is written to in place later")
    # What is written to the base before anybody reads it is a part of its value.
    reading = [node for node in inner | dying if base in node.all_input_nodes]
    reads = [order[node] for node in reading] or [order[base]]
    if facts.write_between(base, min(reads), max(place, *reads) - 1, ignoring=dying):
        return Refusal(f"{base} is written to in place before it is read")
    permuted = False
    for link in path[path.index(main) + 1 :]:
        if link.commuting is not None:
            views = permutes(link.value) or indexes(link.value)
            permuted = views or (permuted and not link.commuting.copies)
    # What was computed after a transposition or an index becomes that view itself.
    moves = permuted or any(
        link.commuting is not None or len(link.inner) > 1 or indexes(link.value) for link in path
    )
    if (moves or region.adjustments) and (permuted or facts.by_layout):
        problem = _layout_problem(region.kept, dying, facts, views=permuted)
        if problem is not None:
            return problem
    # The new value has memory of its own; nobody may rely on the old one's aliases.
    if facts.write_between(value, order[value], len(order), ignoring=dying):
        for member in facts.alias_class(value):
            older = order[member] < order[value] and member not in dying
            if older and any(order[user] > order[value] for user in member.users):
                return Refusal(f"{value} shares memory with {member} and is written to later")
    return None


def _layout_problem(
    value: fx.Node, dying: Collection[fx.Node], facts: Facts, *, views: bool
) -> Refusal | None:
    """Why a value may not lie otherwise in memory than it did.

    Args:
        value: The value.
        dying: The nodes that are gone.
        facts: What is known of the graph.
        views: Whether it may become a transposed one, of which a view can fail.
    """
    pending, seen = [value], {value}
    while pending:
        for reader in pending.pop().users:
            outside = reader.op == "output"
            if reader in seen or reader in dying or (outside and not (views and facts.inner)):
                continue
            seen.add(reader)
            if reader in facts.by_layout:
                return Refusal(f"its value may lie otherwise in memory, which matters for {reader}")
            if views and (outside or reads_layout(reader, facts.root)):
                return Refusal("its value's layout in memory would change, which others may read")
            if not lays_out_anew(reader, facts.root):
                pending.append(reader)
    return None


def _would_share_memory(absorbed: Absorbed, dying: Collection[fx.Node], facts: Facts) -> bool:
    """Whether somebody writes to a sum, or to what stands for it, and another would see it."""
    total = absorbed.total
    if absorbed.kept in facts.written.get(total, ()):
        return False  # they share memory already
    since = facts.order[total]
    return any(
        facts.write_between(node, since, len(facts.order), ignoring=dying)
        for node in (total, absorbed.kept)
    )
