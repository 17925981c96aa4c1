"""What operators do besides returning a value: which memory they share, and which they write to.

Everything unknown is taken at its worst: an unknown operator may return a view of its arguments
and may write to them. What torch's own operators do, their schemas say.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from reparam.capture.operators import (
    _FRESH_OPERATORS,
    NUMBER_FUNCTIONS,
    RETURN_WHAT_THEY_WROTE,
    is_torch,
    operator_name,
    reads_metadata,
)
from reparam.capture.writes import assign
from reparam.modules.tree import fetch
from reparam.rules import Rules

_INPLACE_OPERATORS = {*RETURN_WHAT_THEY_WROTE, operator.setitem, assign}

# Aliases that no schema declares: these return their input as it is, in eval mode or always.
_QUIET_ALIASES = set(
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout "
    "feature_dropout Dropout Dropout1d Dropout2d Dropout3d AlphaDropout "
    "FeatureAlphaDropout Identity Flatten Unflatten type_as contiguous float half double "
    "bfloat16 to cpu cuda type conj real requires_grad_ einsum unsafe_chunk unsafe_split "
    "unsafe_split_with_sizes atleast_1d atleast_2d atleast_3d broadcast_tensors meshgrid "
    "cartesian_prod to_dense".split()
)

_RANDOM = set("gumbel_softmax rrelu fractional_max_pool2d fractional_max_pool3d".split())


@dataclass(frozen=True)
class Effects:
    """What a node does besides returning a value.

    Args:
        aliases: Whether its value may share memory with its arguments.
        writes: The arguments it may write to.
        random: Whether it draws random numbers.
    """

    aliases: bool
    writes: tuple[fx.Node, ...]
    random: bool = False

    @property
    def pure(self) -> bool:
        """Whether it does nothing besides returning its value."""
        return not self.writes and not self.random


_INPLACE_NAMES = {function.__name__ for function in RETURN_WHAT_THEY_WROTE} | {"setitem"}

_FRESH = Effects(False, ())

_VIEW = Effects(True, ())


def effects_of(node: fx.Node, root: nn.Module, rules: Rules) -> Effects:
    """What one node does besides returning a value.

    Args:
        node: The node.
        root: The module that the node's path refers to.
        rules: The rules of this call; an operator with a rule is taken to write to nothing.
    """
    arguments = tuple(node.all_input_nodes)
    if node.op in ("placeholder", "get_attr", "output"):
        return _VIEW if node.op == "output" else _FRESH
    if reads_metadata(node):
        return _FRESH
    if node.op == "call_module":
        module = fetch(root, str(node.target))
        ours = type(module).__module__.startswith("torch.nn.modules")
        if not ours and rules.find(type(module)) is not None and "forward" not in vars(module):
            return Effects(True, arguments) if getattr(module, "inplace", False) else _VIEW
        return _module_effects(module, arguments)
    inplace = node.kwargs.get("inplace", False)
    first = node.args[0] if node.args else node.kwargs.get("input")
    target_nodes = (first,) if isinstance(first, fx.Node) else arguments
    if node.op == "call_method":
        name = str(node.target)
        if not hasattr(torch.Tensor, name):
            return Effects(True, arguments)  # a list, a dictionary, anything
        if name == "__setitem__" or name.strip("_") in _INPLACE_NAMES:
            return Effects(True, target_nodes)
        return _named_effects(name, arguments, target_nodes, torch.Tensor)
    target = node.target
    if target in _INPLACE_OPERATORS:
        adds_to_number = isinstance(first, int | float)  # 0 += x makes a new tensor
        return _FRESH if adds_to_number else Effects(True, target_nodes)
    if target in _FRESH_OPERATORS:
        return _FRESH
    if target in (operator.getitem, getattr):
        return _VIEW
    if target in NUMBER_FUNCTIONS:
        return _FRESH
    if isinstance(target, torch._ops.OpOverload):
        return _schema_effects(target, node)
    if isinstance(target, type) and issubclass(target, tuple):
        return _VIEW
    name = getattr(target, "__name__", "")
    if isinstance(target, torch._ops.OpOverloadPacket) and target.__module__ != "torch._ops.aten":
        mutable = any(getattr(target, one)._schema.is_mutable for one in target.overloads())
        return Effects(True, arguments) if mutable else _declared_effects(target)
    if not is_torch(target):
        return _VIEW if rules.find(target) is not None else Effects(True, arguments)
    if inplace is not False or _positional_inplace(target, node):
        return Effects(True, target_nodes)
    if "out" in node.kwargs:
        return Effects(True, arguments)
    return _named_effects(name, arguments, target_nodes, F)


def reads_layout(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node may depend on how its operand lies in memory: code that nobody knows does."""
    if node.op == "call_module":
        return not type(fetch(root, str(node.target))).__module__.startswith("torch.nn.modules")
    if node.op == "call_function" and not is_torch(node.target):
        return node.target not in NUMBER_FUNCTIONS and node.target is not getattr
    return operator_name(node) in _LAYOUT_READERS


_LAYOUT_READERS = set("view view_as as_strided stride is_contiguous data_ptr".split())


def draws_by_layout(node: fx.Node) -> bool:
    """Whether a node draws random numbers in the order in which its operand lies in memory."""
    return node.op != "call_module" and operator_name(node) in _DRAWS_BY_LAYOUT


_DRAWS_BY_LAYOUT = set(
    "rand_like randn_like randint_like bernoulli bernoulli_ normal_ uniform_ random_ exponential_ "
    "gumbel_softmax rrelu".split()
)


def may_copy(node: fx.Node, root: nn.Module) -> bool:
    """Whether it depends on how an operand lies in memory if a node's value shares it."""
    if node.op == "call_module":
        return type(fetch(root, str(node.target))).__name__ == "Flatten"
    return operator_name(node) in _MAY_COPY


def lays_out_anew(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node's value lies in memory the same way, however its operands do."""
    if node.op == "call_module":
        return type(fetch(root, str(node.target))) in (nn.Linear, nn.LayerNorm)
    return operator_name(node) in ("linear", "layer_norm", "matmul", "bmm")


_MAY_COPY = set("reshape reshape_as flatten ravel contiguous".split())


def _positional_inplace(target: Any, node: fx.Node) -> bool:
    """Whether a functional got ``inplace=True`` by position, as in ``F.relu(x, True)``."""
    names = getattr(getattr(target, "__code__", None), "co_varnames", ())
    if "inplace" not in names:
        return False
    position = names.index("inplace")
    return position < len(node.args) and node.args[position] is not False


def _named_effects(
    name: str, arguments: tuple[fx.Node, ...], first: tuple[fx.Node, ...], home: Any
) -> Effects:
    if name in _QUIET_ALIASES:
        return _VIEW
    if name.endswith("_") and not name.endswith("__"):
        return Effects(True, first)
    packet = getattr(torch.ops.aten, name, None) or getattr(torch.ops.aten, name.strip("_"), None)
    if packet is None:
        # A functional of many operators (F.normalize, F.interpolate): it writes to nothing.
        known = hasattr(home, name)
        return Effects(True, () if known else arguments, random=name in _RANDOM)
    return _declared_effects(packet)


@cache
def _declared_effects(packet: torch._ops.OpOverloadPacket) -> Effects:
    """What the schemas of an operator say, but for those that write into a given tensor."""
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    overloads = [
        overload
        for overload in overloads
        if not any(argument.is_out for argument in overload._schema.arguments)
    ]
    return Effects(
        any(result.alias_info for overload in overloads for result in overload._schema.returns),
        (),
        random=any(torch.Tag.nondeterministic_seeded in overload.tags for overload in overloads),
    )


def _schema_effects(target: torch._ops.OpOverload, node: fx.Node) -> Effects:
    schema = target._schema
    if schema.is_mutable:
        written: list[fx.Node] = []
        for position, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = node.args[position : position + 1] or node.kwargs.get(argument.name)
                fx.map_arg(given, written.append)
        return Effects(True, tuple(written))
    name = schema.name.rsplit("::", 1)[-1]
    return Effects(
        name in _QUIET_ALIASES or any(result.alias_info for result in schema.returns),
        (),
        random=torch.Tag.nondeterministic_seeded in target.tags and name not in _QUIET_ALIASES,
    )


def _module_effects(module: nn.Module, arguments: tuple[fx.Node, ...]) -> Effects:
    home = type(module).__module__
    if home == "torch.export._unlift":
        return _FRESH  # it checks the sizes of the inputs
    hooked = module._forward_hooks or module._forward_pre_hooks
    if not home.startswith("torch.nn.modules") or hooked or "forward" in vars(module):
        return Effects(True, arguments)
    if getattr(module, "inplace", False):
        return Effects(True, arguments)
    if type(module).__name__ in _QUIET_ALIASES:
        return _VIEW
    return _FRESH
