"""Whether a region is safe: nobody writes in place to what it reads, or sees that memory moved."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from reparam.analysis import Facts, promotes
from reparam.capture import reached, torch_name
from reparam.errors import Refusal
from reparam.modules import fetch
from reparam.planning.layouts import layout_is_read
from reparam.planning.regions import Region


def hazard(region: Region, facts: Facts, settled: Mapping[fx.Node, fx.Node]) -> Refusal | None:
    """Why a region is not safe; the first of ten hazards tells.

    The terms of settled sums have left them already: other values stand for these.
    """
    return (
        _integers_overflow(region, facts)
        or _operand_is_written(region, facts)
        or _sum_is_written(region, facts, settled)
        or _base_is_written(region, facts)
        or _scaled_is_written(region, facts, settled)
        or layout_is_read(region, facts)
        or _alias_is_lost(region, facts)
        or _gradient_is_lost(region, facts)
        or _context_is_left(region, facts)
        or _checkpoint_is_written(region, facts)
    )


def _context_is_left(region: Region, facts: Facts) -> Refusal | None:
    """Of operators in ``torch.no_grad`` and others outside one would run where the other does."""
    if not facts.contexts:
        return None
    scaling = (node for scale in region.gathered for node in scale.link.inner)
    nodes = [
        node
        for node in (*region.own, *scaling)
        if node.op != "get_attr" and node not in facts.sources
    ]
    around = {facts.contexts.get(node, ()) for node in (region.value, *nodes)}
    if len(around) == 1:
        return None
    return Refusal("a part of it runs in a context such as torch.no_grad, and a part outside")


def _checkpoint_is_written(region: Region, facts: Facts) -> Refusal | None:
    """Checkpointing runs code again, from arguments to which that code would write by now.

    What it wrote to was its own: an operator in it. In place of that and one before it comes a
    new one that may lie before it.
    """
    value = region.value
    computed = (node for node in region.dying if node.op != "get_attr")
    within = [facts.recomputed.get(node, frozenset()) for node in computed]
    if not any(facts.recomputed.get(value, frozenset()) - calls for calls in within):
        return None
    if not facts.memory.write_between(value, facts.order[value], len(facts.order)):
        return None
    return Refusal(f"{value} is written to in place later, in code that checkpointing runs again")


def _integers_overflow(region: Region, facts: Facts) -> Refusal | None:
    """Integers are multiplied as floats from now on, but were not before."""
    first = next((link for link in region.path if link.form is not None), region.main)
    if region.converts and not all(promotes(node, facts) for node in first.inner):
        return Refusal("integers may overflow before they become floats; pass example_inputs")
    return None


def _operand_is_written(region: Region, facts: Facts) -> Refusal | None:
    """Somebody else writes to a value on the way between its definition and its read."""
    bases = {region.base, *(scale.link.base for scale in region.gathered)}
    scaling = (node for scale in region.gathered for node in scale.link.inner)
    for node in (*region.inner, *scaling):
        for operand in node.all_input_nodes:
            if operand not in bases and facts.memory.write_between(
                operand, facts.order[operand], facts.order[node] - 1, ignoring=region.dying
            ):
                return Refusal(f"{operand} is written to in place before it is read")
    return None


def _sum_is_written(
    region: Region, facts: Facts, settled: Mapping[fx.Node, fx.Node]
) -> Refusal | None:
    """A sum that loses a term becomes its other operand: a write to one would reach both."""
    for absorbed in region.absorbed:
        total, kept = absorbed.total, absorbed.kept
        # A sum in place shares memory with that operand already.
        if total in settled or kept in facts.memory.written.get(total, ()):
            continue
        first, second = (_names(node, facts, settled) for node in (total, kept))
        if facts.memory.tells_apart(first, second, facts.order[total], ignoring=region.dying):
            return Refusal(f"{total} is written to in place later")
    return None


def _names(node: fx.Node, facts: Facts, settled: Mapping[fx.Node, fx.Node]) -> set[fx.Node]:
    """All names of the memory of a value, and of what it stands for already."""
    standing = reached([node], lambda kept: (gone for gone in settled if settled[gone] is kept))
    return {name for value in standing for name in facts.memory.alias_class(value)}


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


def _scaled_is_written(
    region: Region, facts: Facts, settled: Mapping[fx.Node, fx.Node]
) -> Refusal | None:
    """Somebody writes to what a part of the base scaled, which is read only for the base now."""
    last = facts.order[region.base] - 1
    for scale in region.gathered:
        base = scale.link.base
        reads = [facts.order[n] for n in scale.link.inner if base in n.all_input_nodes]
        since = min(reads, default=facts.order[base])
        while True:
            if facts.memory.write_between(base, since, last, ignoring=region.dying):
                return Refusal(f"{base} is written to in place before it is read")
            if base not in settled:
                break
            base = settled[base]
            since = facts.order[base]
        if not region.unscaled.isdisjoint(facts.memory.held):
            return Refusal("a module or a hook may keep a value that would lack its scale")
    return None


def _gradient_is_lost(region: Region, facts: Facts) -> Refusal | None:
    """The gradient of the new operator needs the base, which somebody writes to later.

    It did not before if what read the base has no parameters: ``conv(x + x)``, then ``x += 1``.
    """
    base, order = region.base, facts.order
    reading = [
        node
        for node in region.inner | region.dying
        if any(facts.memory.may_share(base, operand) for operand in node.all_input_nodes)
    ]
    last = max([order[node] for node in reading], default=order[base])
    if not facts.memory.write_between(base, last, len(order), ignoring=region.dying):
        return None
    if any(_keeps_its_operand(node, facts) for node in reading):
        return None
    return Refusal(f"{base} is written to in place later, and gradients would need it as it was")


def _keeps_its_operand(node: fx.Node, facts: Facts) -> bool:
    """Whether the gradient of an operator needs what it read: it multiplies that by parameters."""
    if node.op == "call_module":
        module = fetch(facts.root, str(node.target))
        return any(tensor.requires_grad for tensor in module.parameters())
    if torch_name(node) in ("add", "sub", "rsub"):
        return False
    names = {name for each in node.all_input_nodes for name in facts.sources.get(each, ())}
    held = [fetch(facts.root, name) for name in names]
    return any(getattr(tensor, "requires_grad", False) for tensor in held)


def _alias_is_lost(region: Region, facts: Facts) -> Refusal | None:
    """The new value has memory of its own; nobody may rely on the old one's aliases."""
    value = region.value
    if not facts.memory.shows_copy(value, ignoring=region.dying):
        return None
    oldest = facts.memory.alias_class(value)[0]
    return Refusal(f"{value} shares memory with {oldest} and is written to later")
