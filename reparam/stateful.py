"""Regions in code that keeps state."""

from __future__ import annotations

from reparam.errors import Refusal
from reparam.frames import frame_of, knows_only_tensors
from reparam.regions import Region
from reparam.rewriting import Rewriter
from reparam.structures import nodes_in


def frame_problem(rewriter: Rewriter, region: Region) -> Refusal | None:
    """Why a region may not be fused although it is exact: its code keeps state.

    A module whose forward changes the module runs as it is written. What lies inside one of its
    parts may change if that part alone decides how it runs.
    """
    trace = rewriter.trace
    frame = frame_of(trace, region)
    refusal = Refusal(
        f"{frame.path or 'the model'} changes its own attributes when it runs, or enters a context "
        "such as torch.no_grad"
    )
    crossed = {
        call
        for node in region.dying
        if node.op != "get_attr"
        for call in trace.caller[node].ancestry()
    } - set(frame.ancestry())
    if ({frame} | crossed | rewriter.edits(region)) & trace.stateful:
        return refusal
    if not any(call in trace.stateful for call in frame.ancestry()):
        return None
    times = sum(call.module is frame.module for call in trace.calls)
    arguments = list(nodes_in(frame.arguments))
    visible = region.base in arguments or frame in trace.caller[region.base].ancestry()
    if times == 1 and visible and knows_only_tensors(frame):
        return None
    return refusal
