r"""Operators that are no affine maps but that a positive scale may cross.

f(s * x) = s * f(x)        for every s > 0 per channel

What an affine operator does to a scale, its rule tells already (`reparam.rules`), also that of
somebody's own layer. Of the others the table of operators tells
(`reparam.capture.operator_traits`): rectifiers, maxima, and what only hands a value on.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

from torch import fx, nn

from reparam.analysis import Facts
from reparam.capture import Trait, torch_name, traits
from reparam.modules import fetch, has_hooks


def homogeneous(node: fx.Node, facts: Facts) -> int | None:
    """How many last axes a node mixes, the channels before them; None if it lets no scale pass.

    All of its operands have to share the scale of its value.
    """
    module = fetch(facts.root, str(node.target)) if node.op == "call_module" else None
    if module is not None and (has_hooks(module) or "forward" in vars(module)):
        return None
    if "out" in node.kwargs:
        return None
    known = traits(node, facts.root)
    named = dict(node.kwargs)
    first, *others = node.args or (named.pop("input", named.pop("self", None)),)
    others += named.values()
    operands = tuple(facts.operands(node))
    if Trait.EXTREME in known:
        return 0 if all(value in operands for value in (first, *others)) else None
    if operands != (first,):
        return None  # what it reads besides has a scale of its own
    if Trait.WINDOWED in known:
        name = torch_name(node) if module is None else type(module).__name__
        return None if _gives_places(node, module) else int(name[-2])
    zero = all(bound is None or (type(bound) in (int, float) and bound == 0) for bound in others)
    passes = Trait.POSITIVELY_HOMOGENEOUS in known or (Trait.CLAMPS in known and zero)
    return 0 if passes else None


def _gives_places(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a max pool returns the places of the maxima, too, which have no scale."""
    asked: Any = node.kwargs.get("return_indices", False)
    if module is not None:
        asked = module.return_indices
    elif torch_name(node).startswith("adaptive"):
        if not isinstance(node.target, FunctionType):
            return True  # below torch.nn.functional it always does
        asked = node.args[2] if len(node.args) > 2 else asked
    elif len(node.args) > 6:
        asked = node.args[6]
    return asked is not False
