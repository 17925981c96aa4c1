"""The rows of a report, from the decisions of the planner."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from torch import fx

from reparam.analysis import Part, Untraced, target_of
from reparam.capture import CodeStatement, Trace, reached
from reparam.modules import fetch, join
from reparam.planning import PlannedPart, Region
from reparam.report.entries import FusedRow, RefusedRow
from reparam.rules import describe_rule, describe_target, is_built_in


def fused_row(part: Part, region: Region) -> FusedRow:
    """The row of one region, before it is applied."""
    kinds = Counter(
        operator_kind(part.trace, node)
        for node in sorted(region.dying, key=part.facts.order.__getitem__)
        if node in part.steps
    )
    return FusedRow(
        place(part.trace, region.value),
        " + ".join(f"{count} {kind}" if count > 1 else kind for kind, count in kinds.items()),
        _operator_name(region),
        (region.before.multiply_adds, region.after.multiply_adds),
        (region.before.operators, region.after.operators),
        cost=(region.before.amount, region.after.amount),
        sized=bool(part.facts.shapes),
        basis=region.basis.value,
    )


def refused_rows(planned: PlannedPart) -> list[RefusedRow]:
    """One row per operator that the planner leaves."""
    trace, refused = planned.part.trace, planned.decision.refused
    places = {node.name: place(trace, node) for node in trace.graph.nodes if node.op != "output"}
    rows = [
        RefusedRow(
            place(trace, node), operator_kind(trace, node), _with_places(refusal.reason, places)
        )
        for node, refusal in refused.items()
    ]
    # What code chooses between is in no graph, and joins with nothing.
    for node in trace.graph.nodes:
        code = node.target
        if isinstance(code, CodeStatement) and code.chooses and node not in planned.part.facts.idle:
            reason = f"only a run tells which way it goes ({code.line})"
            rows.append(RefusedRow(place(trace, node), "code", reason))
    return rows


def _with_places(reason: str, places: Mapping[str, str]) -> str:
    """A reason with the places of the values that it names in the place of their names.

    A name without a number or an underscore may be a word.
    """
    return re.sub(r"\b\w*[\d_]\w*\b", lambda word: places.get(word[0], word[0]), reason)


def untraced_row(untraced: Untraced) -> RefusedRow:
    """The row of a module that stays as it is."""
    return RefusedRow(untraced.path or "the model", type(untraced.module).__name__, untraced.reason)


def taught_rules(part: Part, region: Region) -> str:
    """The rules that a region rests on and that are not the library's own, with their places."""
    scales = {scale.value for scale in region.scales}
    edge = scales | {region.base}
    ends = [region.value, *(absorbed.term for absorbed in region.absorbed)]
    nodes = reached(ends, lambda node: () if node in edge else node.all_input_nodes) | scales
    taught: dict[str, None] = {}
    for node in sorted(nodes - {region.base}, key=part.facts.order.__getitem__):
        target = target_of(node, part.trace.root)
        rule = part.rules.find(target)
        if rule is not None and not is_built_in(rule):
            where = f"{describe_target(target)} ({place(part.trace, node)})"
            taught[f"the rule {describe_rule(rule)} of {where}"] = None
    return ", ".join(taught)


def place(trace: Trace, node: fx.Node) -> str:
    """Where in the model a value is computed."""
    if node.op == "call_module":
        return join(trace.path, str(node.target))
    path = join(trace.path, trace.caller[node].path)
    return f"{path} ({node.name})" if path else node.name


def described(trace: Trace, node: fx.Node) -> str:
    """What kind of operator a node runs, and where."""
    return f"{operator_kind(trace, node)} ({place(trace, node)})"


def operator_kind(trace: Trace, node: fx.Node) -> str:
    """What kind of operator a node runs."""
    if node.op == "call_module":
        return type(fetch(trace.root, str(node.target))).__name__
    return str(node.target) if node.op == "call_method" else describe_target(node.target)


def _operator_name(region: Region) -> str:
    """What a new operator is, and of how many channels."""
    form = region.form
    if region.norm is not None:
        bare = " without a weight" if region.norm.bare else ""
        return f"{region.norm.kind}{bare}, {region.norm.channels}"
    sizes = f"{form.in_channels} -> {form.out_channels}"
    weight = "" if region.folded is None else ", with the weight of a norm"
    if not form.axes:
        return f"linear {sizes}{weight}"
    taps = "x".join(str(axis.kernel) for axis in form.axes)
    kind = "transposed conv" if form.transposed else "conv"
    if form.depthwise:
        kind, sizes = f"depthwise {kind}", str(form.out_channels)
    elif form.groups != 1:
        sizes += f", {form.groups} groups"
    return f"{kind} {taps}, {sizes}{weight}"
