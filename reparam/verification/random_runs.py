"""Run the modules that get new code on random inputs, before and after: do they still agree?

Regions are checked by themselves, which does not see a mistake in how they were put back. So the
graph as it was runs once, in float64 on an input as small as works, and what every module was given
and what it returned is kept; its new code must return the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from reparam.algebra.affine import AffineConv
from reparam.analysis.parts import Part
from reparam.analysis.ranks import keeps_shape
from reparam.capture.operators import NUMBER_FUNCTIONS, converts, is_torch, operator_name
from reparam.capture.structures import nodes_in
from reparam.modules.float64 import call_exact, run_function
from reparam.modules.tree import fetch, has_hooks
from reparam.rules import Commuting

_SIZES = {1: (64, 2048), 2: (32, 64), 3: (16, 32)}

_DISCONTINUOUS = set(
    "sign sgn round floor ceil trunc frac floor_divide floordiv remainder fmod mod argmax argmin "
    "topk sort argsort max min eq ne lt le gt ge heaviside bucketize searchsorted nonzero bool "
    "float half double bfloat16 to type type_as _to_copy int long".split()
)


def may_run(module: nn.Module) -> bool:
    """Whether running a module calls nobody who listens."""
    return not any(map(has_hooks, module.modules()))


# -- Inputs ---------------------------------------------------------------------------------------


def random_inputs(part: Part) -> Iterator[dict[fx.Node, Tensor]]:
    """Random inputs of a part in float64, the smallest first."""
    device = next((tensor.device for tensor in part.trace.root.parameters()), None)
    if device is not None and device.type == "meta":
        return
    generator = torch.Generator().manual_seed(0)
    layouts = {
        node: _layout(node, part) for node in part.trace.graph.nodes if node.op == "placeholder"
    }
    for attempt in range(2):
        inputs = {}
        for node, layout in layouts.items():
            if layout is None:
                continue
            rank, sizes = layout
            usual = _SIZES.get(rank - 2, (4, 16))[attempt]
            shape = [2, *[usual] * (rank - 1)]
            for axis, size in sizes.items():
                shape[axis] = size
            value = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
            inputs[node] = value if device is None else value.to(device)
        if inputs:
            yield inputs


def _layout(node: fx.Node, part: Part) -> tuple[int, dict[int, int]] | None:
    """The number of axes of an input and the sizes of some, as its first affine readers tell."""
    sizes: dict[int, int] = {}
    pending, seen = [node], set()
    while pending:
        value = pending.pop(0)
        for reader in value.users:
            step = part.steps.get(reader)
            form = step if isinstance(step, AffineConv) and step.base is value else None
            if form is not None and form.axes is not None and form.in_channels is not None:
                sizes.setdefault(-len(form.axes) - 1, form.in_channels)
            if reader not in seen and (
                (form is not None and form.diagonal) or keeps_shape(reader, part.facts.root)
            ):
                seen.add(reader)
                pending.append(reader)
    if not sizes:
        return None
    rank = part.facts.ranks.get(node, max(1 - min(sizes), 2))
    return (rank, sizes) if rank > 1 and all(-axis < rank for axis in sizes) else None


def is_known(structure: Any, values: Mapping[fx.Node, Any], part: Part) -> bool:
    """Whether all nodes in a structure have a value, or are constants."""
    nodes: list[fx.Node] = []
    fx.map_arg(structure, nodes.append)
    nodes.extend(nodes_in(structure))
    return all(node in values or node in part.facts.sources for node in nodes)


def runs_alone(node: fx.Node, part: Part) -> bool:
    """Whether running a node runs nobody's own code, and its value does not jump."""
    if node.op == "call_module":
        module = fetch(part.trace.root, str(node.target))
        ours = type(module).__module__.startswith("torch.nn.modules") or node in part.steps
        return ours and may_run(module) and "forward" not in vars(module)
    name = operator_name(node).strip("_")
    if node in part.facts.numbers:
        return True
    if converts(node) and isinstance(part.steps.get(node), Commuting):
        return True
    if name in _DISCONTINUOUS:
        return False
    if node.op == "call_method":
        return True
    return node in part.steps or is_torch(node.target) or node.target in NUMBER_FUNCTIONS


def execute(node: fx.Node, values: dict[fx.Node, Any], read: Any, part: Part) -> None:
    """Run one node of a graph, if its operands are there."""
    args, kwargs = fx.map_arg(node.args, read), fx.map_arg(node.kwargs, read)
    before = torch.get_rng_state()
    result: Any
    if node.op == "call_module":
        module = fetch(part.trace.root, str(node.target))
        result = call_exact(module, args, kwargs)
    elif converts(node):
        result = args[0]
    else:
        result = run_function(node, args, kwargs)
    if not torch.equal(torch.get_rng_state(), before):
        return  # a random number
    tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    if all(not t.is_floating_point() or t.dtype == torch.float64 for t in tensors):
        values[node] = result
