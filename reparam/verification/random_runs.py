"""Run the graph of a part in float64 on random inputs, as far as that tells something.

Nobody's own code is run, and no operator whose value jumps where its operand is rounded, or is
drawn at random: what cannot be run is not known, nor is what depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from reparam.algebra import AffineConv
from reparam.analysis import Part, keeps_shape
from reparam.capture import Trait, converts, has_known_name, traits
from reparam.modules import fetch, has_hooks, torch_random_state
from reparam.rules import Commuting, Normalized
from reparam.verification.exact_run import ExactRun

_SIZES = {1: (64, 2048), 2: (32, 64), 3: (16, 32)}
"""Usual sizes of a spatial axis, by how many of them there are; the second are tried if the first
are too small."""


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
            step = step.ending if isinstance(step, Normalized) else step
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


def try_to_run(node: fx.Node, run: ExactRun, part: Part) -> bool:
    """Run a node, if that gives a function of its operands in float64; say whether it did."""
    if node.op in ("placeholder", "output", "get_attr") or node in part.facts.sources:
        return False
    if not run.knows((node.args, node.kwargs)) or not _runs_alone(node, part):
        return False
    before = torch_random_state()
    run.run(node)
    is_random = torch_random_state() != before
    tensors = [leaf for leaf in tree_leaves(run.values[node]) if isinstance(leaf, Tensor)]
    if is_random or any(t.is_floating_point() and t.dtype != torch.float64 for t in tensors):
        del run.values[node]
        return False
    return True


def _runs_alone(node: fx.Node, part: Part) -> bool:
    """Whether running a node runs nobody's own code, and its value does not jump."""
    if node.op == "call_module":
        module = fetch(part.trace.root, str(node.target))
        ours = type(module).__module__.startswith("torch.nn.modules") or node in part.steps
        return ours and may_run(module) and "forward" not in vars(module)
    if node in part.facts.numbers:
        return True
    if converts(node) and isinstance(part.steps.get(node), Commuting):
        return True
    if Trait.DISCONTINUOUS in traits(node):
        return False
    if node.op == "call_method":
        return True
    return node in part.steps or has_known_name(node.target)


def may_run(module: nn.Module) -> bool:
    """Whether running a module calls nobody who listens."""
    return not any(map(has_hooks, module.modules()))
