"""Whether a region is safe: nobody writes in place to what it reads, or sees that memory moved."""

from __future__ import annotations

from collections.abc import Collection

from torch import fx, nn

from reparam.analysis import Facts, promotes, reads_layout
from reparam.capture import Trait, reached, torch_name, traits
from reparam.errors import Refusal
from reparam.modules import fetch
from reparam.planning.regions import Region


def hazard(region: Region, facts: Facts, settled: Collection[fx.Node]) -> Refusal | None:
    """Why a region is not safe; the first of seven hazards tells.

    The terms of settled sums have left them already.
    """
    return (
        _integers_overflow(region, facts)
        or _operand_is_written(region, facts)
        or _sum_is_written(region, facts, settled)
        or _base_is_written(region, facts)
        or _layout_is_read(region, facts)
        or _alias_is_lost(region, facts)
        or _gradient_is_lost(region, facts)
    )


def _integers_overflow(region: Region, facts: Facts) -> Refusal | None:
    """Integers are multiplied as floats from now on, but were not before."""
    first = next((link for link in region.path if link.form is not None), region.main)
    if region.converts and not all(promotes(node, facts) for node in first.inner):
        return Refusal("integers may overflow before they become floats; pass example_inputs")
    return None


def _operand_is_written(region: Region, facts: Facts) -> Refusal | None:
    """Somebody else writes to a value on the way between its definition and its read."""
    for node in region.inner:
        for operand in node.all_input_nodes:
            if operand is not region.base and facts.memory.write_between(
                operand, facts.order[operand], facts.order[node] - 1, ignoring=region.dying
            ):
                return Refusal(f"{operand} is written to in place before it is read")
    return None


def _sum_is_written(region: Region, facts: Facts, settled: Collection[fx.Node]) -> Refusal | None:
    """A sum that loses a term becomes its other operand: a write to one would reach both."""
    for absorbed in region.absorbed:
        total, kept = absorbed.total, absorbed.kept
        # A sum in place shares memory with that operand already.
        if total in settled or kept in facts.memory.written.get(total, ()):
            continue
        since, end = facts.order[total], len(facts.order)
        if any(
            facts.memory.write_between(x, since, end, ignoring=region.dying) for x in (total, kept)
        ):
            return Refusal(f"{total} is written to in place later")
    return None


def _base_is_written(region: Region, facts: Facts) -> Refusal | None:
    """Somebody writes to the base after its first read, and the new operator reads it later."""
    base, value, dying, order = region.base, region.value, region.dying, facts.order
    # What is written to the base before anybody reads it is a part of its value.
    reading = [node for node in region.inner | dying if base in node.all_input_nodes]
    reads = [order[node] for node in reading] or [order[base]]
    place = order[region.main.value if region.main.value in dying else value]
    if facts.memory.write_between(base, min(reads), max(place, *reads) - 1, ignoring=dying):
        return Refusal(f"{base} is written to in place before it is read")
    return None


def _gradient_is_lost(region: Region, facts: Facts) -> Refusal | None:
    """The gradient of the new operator needs the base, which somebody writes to later.

    It did not before if what read the base has no parameters: ``conv(x + x)``, then ``x += 1``.
    """
    base, order = region.base, facts.order
    same = {base, *facts.memory.alias_class(base)}
    reading = [n for n in region.inner | region.dying if not same.isdisjoint(n.all_input_nodes)]
    last = max([order[node] for node in reading], default=order[base])
    if not facts.memory.write_between(base, last, len(order), ignoring=region.dying):
        return None
    if any(_keeps_its_operand(node, facts.root) for node in reading):
        return None
    return Refusal(f"{base} is written to in place later, and gradients would need it as it was")


def _keeps_its_operand(node: fx.Node, root: nn.Module) -> bool:
    """Whether the gradient of an operator needs what it read: it multiplies that by parameters."""
    if node.op == "call_module":
        return any(tensor.requires_grad for tensor in fetch(root, str(node.target)).parameters())
    if torch_name(node) in ("add", "sub", "rsub"):
        return False
    sources = reached(node.all_input_nodes, lambda operand: operand.all_input_nodes)
    held = [fetch(root, str(source.target)) for source in sources if source.op == "get_attr"]
    return any(getattr(tensor, "requires_grad", False) for tensor in held)


def _layout_is_read(region: Region, facts: Facts) -> Refusal | None:
    """The value lies otherwise in memory than it did, and somebody's result depends on that."""
    path = region.path
    permuted = False
    for link in path[path.index(region.main) + 1 :]:
        if link.commuting is not None:
            views = bool(traits(link.value) & (Trait.PERMUTES | Trait.INDEXES))
            permuted = views or (permuted and not link.commuting.copies)
    # What was computed after a transposition or an index becomes that view itself.
    moves = region.adjustments or any(
        link.commuting is not None or len(link.inner) > 1 or Trait.INDEXES in traits(link.value)
        for link in path
    )
    if permuted or (moves and facts.by_layout):
        return _layout_problem(region, facts, views=permuted)
    return None


def _alias_is_lost(region: Region, facts: Facts) -> Refusal | None:
    """The new value has memory of its own; nobody may rely on the old one's aliases."""
    value, order = region.value, facts.order
    if not facts.memory.write_between(value, order[value], len(order), ignoring=region.dying):
        return None
    for member in facts.memory.alias_class(value):
        older = order[member] < order[value] and member not in region.dying
        if older and any(order[user] > order[value] for user in member.users):
            return Refusal(f"{value} shares memory with {member} and is written to later")
    return None


def _layout_problem(region: Region, facts: Facts, *, views: bool) -> Refusal | None:
    """Why its value may not lie otherwise in memory than it did.

    ``views`` says that it may become a transposed one, of which a view can fail.
    """
    pending, seen = [region.kept], {region.kept, *region.dying}
    while pending:
        for reader in pending.pop().users:
            # Of what the whole model returns no layout is promised; a part's result is read on.
            outside = reader.op == "output"
            if reader in seen or (outside and not (views and facts.inner)):
                continue
            seen.add(reader)
            if reader in facts.by_layout:
                return Refusal(f"its value may lie otherwise in memory, which matters for {reader}")
            if views and (outside or reads_layout(reader, facts.root)):
                return Refusal("its value's layout in memory would change, which others may read")
            if Trait.LAYS_OUT_ANEW not in traits(reader, facts.root):
                pending.append(reader)
    return None
