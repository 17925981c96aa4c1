"""Whether the modules of a region tell by themselves along which axes they work."""

from __future__ import annotations

from torch import fx, nn

from reparam.analysis import Facts
from reparam.capture import operator_name
from reparam.modules import fetch
from reparam.planning import Region

_NOTHING = nn.Identity, nn.modules.dropout._DropoutNd

_TELL_RANKS = (
    (nn.modules.conv._ConvNd, nn.BatchNorm2d, nn.BatchNorm3d, *_NOTHING),
    (nn.Linear, nn.LayerNorm, nn.RMSNorm, *_NOTHING),
)
"""Modules of which several in turn do the same on values of any rank that all of them take."""


def rests_on_rank(region: Region, facts: Facts) -> bool:
    """Whether a form may be right only for the rank of what came the traced way.

    Other ways in may bring another one, if the operators themselves do not tell.
    """
    joined = region.inner | region.dying | region.unscaled
    if region.folded is not None:
        joined |= region.together
    nodes = [node for node in joined if node.op != "get_attr"]
    return not any(all(_takes_any(node, kinds, facts) for node in nodes) for kinds in _TELL_RANKS)


def _takes_any(node: fx.Node, kinds: tuple[type, ...], facts: Facts) -> bool:
    """Whether an operator is a module of some kind, or adds values that depend on the input."""
    if node.op == "call_module":
        return isinstance(fetch(facts.root, str(node.target)), kinds)
    plain = facts.sources.keys().isdisjoint(node.all_input_nodes)
    return plain and operator_name(node) == "add" and len(node.all_input_nodes) == len(node.args)
