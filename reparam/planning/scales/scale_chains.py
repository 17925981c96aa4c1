"""Scales and shifts in a row become one operator, which is one of them.

No convolution is cheaper than a scale, so a scale alone stays what it is. But in a chain of scales
there may be an operator that computes any of them, and takes the others in: a depthwise convolution
of one tap, or a batch norm::

    s * (w * n(x) + b) + c = (s w) * n(x) + (s b + c)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx, nn

from reparam.algebra import AffineConv, Norm, batch_norm
from reparam.analysis import Facts
from reparam.capture import Trait, is_of_torch, torch_name, traits
from reparam.errors import Refusal
from reparam.modules import fetch
from reparam.planning.appraiser import Appraiser
from reparam.planning.dominators import Candidate, Link
from reparam.planning.regions import Host, Region
from reparam.rules import Normalized


def chained_regions(nodes: Sequence[fx.Node], appraiser: Appraiser) -> Iterator[Region]:
    """The regions of chains of scales that become one of them, or part of a norm before them."""
    for node in reversed(nodes):
        link = appraiser.forest.links.get(node)
        if link is None or link.form is None or not link.form.diagonal or node in appraiser.dead:
            continue
        drafts = (_drafted(host, node, appraiser) for host in _hosted(node, appraiser))
        fitting = (region for region in drafts if region is not None)
        region = max(fitting, key=lambda region: region.gain, default=None)
        if region is not None:
            yield region


def _hosted(value: fx.Node, appraiser: Appraiser) -> Iterator[tuple[Candidate, Host]]:
    """The chains of scales above a value, each with the operator that can take the others in."""
    for candidate in appraiser.forest.forms(value):
        if not candidate.form.diagonal or candidate.form.identity:
            continue
        path = [part for link in candidate.path for part in appraiser.parts(link)]
        host = host_in(path, appraiser.facts)
        if host is not None:
            yield candidate, host
        behind = _behind_norm(candidate, appraiser)
        if behind is not None:
            yield behind


def _drafted(hosted: tuple[Candidate, Host], value: fx.Node, appraiser: Appraiser) -> Region | None:
    """The region of a chain that one of its operators takes in, if all go and that saves any."""
    candidate, host = hosted
    gone = appraiser.dying([(value, candidate)], metadata=False)
    if any(link.value not in gone for link in candidate.path):
        return None
    region = appraiser.draft(candidate, value, gone, host=host)
    if isinstance(region, Refusal) or not region.gain.saves:
        return None
    return region if appraiser.hazard_of(region) is None else None


def host_in(path: Sequence[Link], facts: Facts) -> Host | None:
    """The operator of a chain of scales that can take the others in."""
    return _convolution(path, facts) or _batch_norm(path, facts)


def _convolution(path: Sequence[Link], facts: Facts) -> Host | None:
    """The first convolution of a chain."""
    return next(
        (Host(link) for link in path if any(_convolves(node, facts) for node in link.inner)), None
    )


def _convolves(node: fx.Node, facts: Facts) -> bool:
    if node.op == "call_module":
        return isinstance(fetch(facts.root, str(node.target)), nn.modules.conv._ConvNd)
    return Trait.CONVOLVES in traits(node)


def _batch_norm(path: Sequence[Link], facts: Facts) -> Host | None:
    """The first batch norm of a chain."""
    for link in path:
        norm = None if link.form is None else batch_norm_of(link.inner[0], link.form, facts)
        if norm is not None:
            return Host(link, norm)
    return None


def _behind_norm(candidate: Candidate, appraiser: Appraiser) -> tuple[Candidate, Host] | None:
    """The same chain with the norm that its base is, if its weight and bias can be others."""
    node = candidate.base
    step = appraiser.steps.get(node)
    if not isinstance(step, Normalized) or node in appraiser.dead or node in appraiser.fused:
        return None
    form, base = step.ending.then(candidate.form), step.ending.base
    if isinstance(form, Refusal) or not isinstance(base, fx.Node):
        return None
    if form.has_bias and not step.norm.takes_constant:
        return None
    inner = (*appraiser.forest.through(node, (base,)), node)
    link = Link(node, base, step.ending, None, inner)
    return Candidate(base, form, (link, *candidate.path)), Host(link, step.norm)


_EPS = {"batch_norm": 7, "native_batch_norm": 7, "_native_batch_norm_legit_no_training": 6}
"""Where ATen's batch norms take the number that they add to the variance."""


def batch_norm_of(node: fx.Node, form: AffineConv, facts: Facts) -> Norm | None:
    """The batch norm of an operator with this form, if it is one that may have another weight.

    A function in somebody's code may not: a module in its place would train otherwise.
    """
    axes = len(form.axes or ())
    if node.op == "call_module":
        module = fetch(facts.root, str(node.target))
        if not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            return None
        statistics = dict(module.named_buffers(recurse=False))
        settings = module.eps, module.momentum
        return batch_norm(statistics, axes, *settings) if is_of_torch(type(module)) else None
    name = torch_name(node)
    if name not in _EPS or not isinstance(node.target, torch._ops.OpOverload):
        return None
    held = {"running_mean": node.args[3], "running_var": node.args[4]}
    tensors = {
        name: facts.constants.as_it_runs(constant)
        for name, constant in held.items()
        if isinstance(constant, fx.Node)
    }
    eps = node.args[_EPS[name]]
    if len(tensors) < len(held) or not isinstance(eps, float):
        return None
    return batch_norm(tensors, axes, eps)
