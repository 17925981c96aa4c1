"""Which values surely hold floats of the model's own type, and which conversions do nothing."""

from __future__ import annotations

import re

import torch
from torch import Tensor, fx, nn

from reparam.analysis.facts import Facts
from reparam.analysis.ranks import keeps_shape
from reparam.analysis.types_of_inputs import READS_FLOATS, name_of_torchs
from reparam.capture import (
    Trait,
    converts,
    traits,
    type_named_by,
)
from reparam.errors import Refusal
from reparam.modules import layer_at
from reparam.rules import Commuting, Step


def keeps_type(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node's value is of a floating-point type if an operand is."""
    if node.op == "call_module":
        name = type(layer_at(root, str(node.target))).__name__
        return keeps_shape(node, root) or name.startswith(
            ("MaxPool", "Flatten", "Unflatten", "Identity", "Upsampl", "PixelShuffle")
        )
    return Trait.KEEPS_TYPE in traits(node)


def holds_type(node: fx.Node, dtype: torch.dtype | None, facts: Facts) -> bool:
    """Whether a value surely has the type of the model's parameters.

    What a convolution, a linear layer or a norm makes or reads has; the model's input may be bytes.
    """
    pending, seen = [node], set()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in facts.dtypes:
            return facts.dtypes[value] == dtype
        asked = _type_asked_for(value)
        if asked is not None:
            return asked == dtype
        name = name_of_torchs(value, facts.root)
        if _MAKES_FLOATS.search(name) or value in facts.read_as_floats:
            return True
        factors = facts.sources.keys() & value.all_input_nodes if name in ("matmul", "mm") else ()
        if any(facts.constants.exact(factor).is_floating_point() for factor in factors):
            return True  # both factors have the type of the parameter
        if keeps_type(value, facts.root):
            pending.extend(facts.operands(value))
    return False


def _type_asked_for(node: fx.Node) -> torch.dtype | None:
    """The type that a conversion gives a value, if its code names one."""
    named = (*node.args, *node.kwargs.values(), type_named_by(node)) if converts(node) else ()
    return next((entry for entry in named if isinstance(entry, torch.dtype)), None)


def conversion(node: fx.Node, facts: Facts) -> Step | None:
    """What a conversion does: nothing, if its operand surely has the type it asks for already.

    It stays where it is, since the model may be converted later.
    """
    operand = node.args[0] if node.args else None
    if not converts(node) or not isinstance(operand, fx.Node):
        return None
    own = {
        parameter.dtype for parameter in facts.root.parameters() if parameter.is_floating_point()
    }
    dtype = next(iter(own), None)
    refusal = Refusal("a conversion to another type or device, or to one known at run time")
    if len(own) != 1 or not holds_type(operand, dtype, facts):
        return refusal
    for entry in (*node.args[1:], *node.kwargs.values(), type_named_by(node)):
        if isinstance(entry, fx.Node):
            asks = entry.op == "call_function" and entry.args[1:] == ("dtype",)
            source = entry.args[0] if asks else entry
            same = isinstance(source, fx.Node) and holds_type(source, dtype, facts)
        else:
            same = entry in (dtype, None) or isinstance(entry, bool | torch.memory_format)
        if not same:
            return refusal
    return Commuting(lambda axis, channels: axis, copies=True)


_MAKES_FLOATS = re.compile(
    READS_FLOATS.pattern + "|sigmoid|softmax|tanh|gelu|silu|swish|avg_?pool|embedding"
)


def promotes(node: fx.Node, facts: Facts) -> bool:
    """Whether an operator on integers computes in floating point from the start.

    A sum or a product with an integer may overflow before anything becomes a float.
    """
    known = traits(node)
    if Trait.DIVIDES in known or Trait.COMPUTES not in known:
        return True
    arguments = (*node.args, *node.kwargs.values())
    if any(isinstance(value, int) for value in arguments):
        return False
    constants = [
        facts.constants.as_it_runs(value)
        for value in arguments
        if isinstance(value, fx.Node) and value in facts.sources
    ]
    return any(
        isinstance(value, float) or (isinstance(value, Tensor) and value.is_floating_point())
        for value in (*arguments, *constants)
    )
