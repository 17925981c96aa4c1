"""Whether a region is safe: nobody writes in place to what it reads, or sees that memory moved."""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

from reparam.channels import promotes
from reparam.effects import lays_out_anew, may_copy, permutes, reads_layout
from reparam.errors import Refusal
from reparam.facts import Facts
from reparam.regions import Absorbed, Region


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
    for node in {node for link in path for node in link.inner}:
        for operand in node.all_input_nodes:
            if facts.write_between(operand, order[operand], order[node] - 1, ignoring=dying):
                return Refusal(f"{operand} is written to in place before it is read")
    for absorbed in region.absorbed:
        if absorbed.total not in settled and _would_share_memory(absorbed, dying, facts):
            return Refusal(f"{absorbed.total} is written to in place later")
    if facts.write_between(base, order[base], place - 1, ignoring=dying):
        return Refusal(f"{base} is written to in place before it is read")
    permuted = False
    for link in path[path.index(main) + 1 :]:
        if link.commuting is not None:
            permuted = permutes(link.value) or (permuted and not link.commuting.copies)
    if permuted:
        # What was computed after a transposition becomes the transposed view itself.
        problem = _layout_problem(value, dying, facts)
        if problem is not None:
            return problem
    # The new value has memory of its own; nobody may rely on the old one's aliases.
    if facts.write_between(value, order[value], len(order), ignoring=dying):
        for member in facts.alias_class(value):
            older = order[member] < order[value] and member not in dying
            if older and any(order[user] > order[value] for user in member.users):
                return Refusal(f"{value} shares memory with {member} and is written to later")
    return None


def _layout_problem(value: fx.Node, dying: Collection[fx.Node], facts: Facts) -> Refusal | None:
    """Why a value may not lie otherwise in memory: a view, or a write to what may be one."""
    pending, seen = [value], {value}
    while pending:
        for reader in pending.pop().users:
            if reader in seen or reader in dying or reader.op == "output":
                continue
            seen.add(reader)
            if reads_layout(reader):
                return Refusal("its value's layout in memory would change, which a view reads")
            if may_copy(reader, facts.root) and facts.write_between(
                reader, facts.order[reader], len(facts.order)
            ):
                return Refusal("its value's layout in memory would change, and so what is written")
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
