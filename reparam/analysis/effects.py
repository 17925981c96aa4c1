"""What operators do besides returning a value: which memory they share, and which they write to.

Everything unknown is taken at its worst: an unknown operator may return a view of its arguments
and may write to them. What torch's own operators do, their schemas say.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from functools import cache
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from reparam.capture import (
    CodeStatement,
    Returning,
    Trait,
    assign,
    context,
    end_of_context,
    has_known_name,
    is_in_place,
    is_of_torch,
    nodes_in,
    operator_name,
    reads_metadata,
    returned,
    returns_a_tensor,
    torch_name,
    traits,
    traits_of,
)
from reparam.modules import SILENT_WRITES, fetch, has_hooks, written_by
from reparam.rules import Rules


@dataclass(frozen=True)
class Effects:
    """What a node does besides returning a value.

    Args:
        aliases: Whether its value may share memory with its arguments.
        writes: The arguments it may write to.
        random: Whether it draws random numbers.
        acts: Whether it does something else: writes to tensors of its own, raises, or prints.
    """

    aliases: bool
    writes: tuple[fx.Node, ...]
    random: bool = False
    acts: bool = False

    @property
    def pure(self) -> bool:
        """Whether it does nothing besides returning its value."""
        return not (self.writes or self.random or self.acts)


_FRESH = Effects(False, ())

_VIEW = Effects(True, ())


def effects_of(node: fx.Node, root: nn.Module, rules: Rules) -> Effects:
    """What one node does besides returning a value."""
    effects = _effects(node, root, rules)
    return replace(effects, random=True) if _draws(node) else effects


def _draws(node: fx.Node) -> bool:
    """Whether an operator that is listed to draw random numbers is not told that it must not."""
    if Trait.RANDOM not in traits(node):
        return False
    target, default = node.target, False
    parameters: Mapping[str, inspect.Parameter] = {}
    if isinstance(target, torch._ops.OpOverload):
        names = [argument.name for argument in target._schema.arguments]
    else:
        function = getattr(F, operator_name(node), None)
        if isinstance(function, FunctionType):
            parameters = inspect.signature(function).parameters
            default = getattr(parameters.get("training"), "default", False)
        names = list(parameters)
    flag = next((name for name in names if name in ("training", "train")), None)
    arguments = dict(zip(names, node.args, strict=False)) | node.kwargs
    return flag is None or arguments.get(flag, default) is not False


def _effects(node: fx.Node, root: nn.Module, rules: Rules) -> Effects:
    if node.op == "output":
        return _VIEW
    if node.op in ("placeholder", "get_attr") or reads_metadata(node):
        return _FRESH
    if node.op == "call_module":
        return _module_effects(node, fetch(root, str(node.target)), rules)
    return _method_effects(node) if node.op == "call_method" else _function_effects(node, rules)


def reads_layout(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node may depend on how its operand lies in memory: code that nobody knows does."""
    if node.op == "call_module":
        return not is_of_torch(type(fetch(root, str(node.target))))
    if node.op == "call_function" and not has_known_name(node.target):
        return node.target is not getattr
    return bool(traits(node) & (Trait.READS_LAYOUT | Trait.MUST_VIEW))


def makes_tensor(node: fx.Node, root: nn.Module, tensors: Set[fx.Node]) -> bool:
    """Whether a value is surely one tensor, given those before it that are."""
    if node.op == "call_module":
        module = fetch(root, str(node.target))
        single = not any(name in type(module).__name__ for name in _OF_SEVERAL_RESULTS)
        several = not single or getattr(module, "return_indices", False)
        return is_of_torch(type(module)) and not several and not has_hooks(module)
    if node.op not in ("call_function", "call_method"):
        return False
    if node.target is assign:
        return True
    name, first = torch_name(node), node.args[0] if node.args else None
    if name == "getitem" and isinstance(first, fx.Node):
        return first in tensors or Trait.SPLITS in traits(first)
    if getattr(node.target, "__module__", "") == "_operator":  # lists add up, too
        return not tensors.isdisjoint(node.all_input_nodes)
    return bool(name) and returns_a_tensor(name.rstrip("_"))


_OF_SEVERAL_RESULTS = ("RNN", "LSTM", "GRU", "MultiheadAttention")


def fills(node: fx.Node, effects: Effects, tensors: Set[fx.Node]) -> bool:
    """Whether a node may put what it reads into a list, or an object, that it reads, too."""
    if len(node.all_input_nodes) < 2 or all(target in tensors for target in effects.writes):
        return False
    if node.target is assign or (is_in_place(operator_name(node)) and torch_name(node)):
        return False  # what tensors alone take
    lengthens = any(isinstance(argument, list | tuple) for argument in node.args)
    return Trait.RETURNS_WHAT_IT_WROTE not in traits(node) or lengthens


def writes_to_itself(module: nn.Module) -> bool:
    """Whether one of torch's modules writes to its own parameters or buffers when it runs."""
    norm = isinstance(module, nn.modules.batchnorm._NormBase) and module.training
    return norm or getattr(module, "max_norm", None) is not None


def _module_effects(node: fx.Node, module: nn.Module, rules: Rules) -> Effects:
    everything = _everything(node)
    kind, inplace = type(module), getattr(module, "inplace", False)
    if kind.__module__ == "torch.export._unlift":
        return _FRESH  # it checks the sizes of the inputs
    if "forward" in vars(module):
        return everything
    if not is_of_torch(kind):
        return everything if inplace or rules.find(kind) is None else _VIEW
    if module._forward_hooks or module._forward_pre_hooks or inplace:
        return everything
    effects = _VIEW if Trait.ALIASES in traits_of(kind.__name__) else _FRESH
    return replace(effects, acts=writes_to_itself(module))


def _method_effects(node: fx.Node) -> Effects:
    name = str(node.target)
    if not hasattr(torch.Tensor, name):
        return _everything(node)  # a list, a dictionary, anything
    if Trait.WRITES in traits(node):
        return Effects(True, _first(node))
    return _named_effects(node, torch.Tensor)


def _everything(node: fx.Node) -> Effects:
    """What an operator does of which nothing is known."""
    return Effects(True, tuple(node.all_input_nodes))


def _function_effects(node: fx.Node, rules: Rules) -> Effects:
    target: Any = node.target
    if (effects := _unnamed_effects(target, node)) is not None:
        return effects
    everything = _everything(node)
    if not has_known_name(target):
        return _VIEW if rules.find(target) is not None else everything
    if target.__module__ == "builtins":
        return _FRESH  # numbers
    if Trait.WRITES in traits(node):
        adds_to_number = node.args and isinstance(node.args[0], int | float)
        return _FRESH if adds_to_number else Effects(True, _first(node))  # 0 += x makes a tensor
    if node.kwargs.get("inplace", False) is not False or _positional_inplace(target, node):
        return Effects(True, _first(node))
    return _named_effects(node, F) if node.kwargs.get("out") is None else everything


def _unnamed_effects(target: Any, node: fx.Node) -> Effects | None:
    """What a target does of which something else tells than its name; None if nothing does."""
    if target in (getattr, returned) or (isinstance(target, type) and issubclass(target, tuple)):
        return _VIEW
    if target in (context, end_of_context):
        return replace(_FRESH, acts=True)
    if isinstance(target, Returning):
        return _code_effects(target.statement, node)
    if isinstance(target, CodeStatement):
        return _code_effects(target, node)
    if isinstance(target, torch._ops.OpOverload):
        return _schema_effects(target, node)
    if isinstance(target, torch._ops.OpOverloadPacket) and target.__module__ != "torch._ops.aten":
        overloads = [getattr(target, name) for name in target.overloads()]
        if any(overload._schema.is_mutable for overload in overloads):
            return _everything(node)
        return _declared_effects(target)
    return None


def _code_effects(statement: CodeStatement, node: fx.Node) -> Effects:
    """What a piece of a model's own code does."""
    effects = _everything(node) if statement.writes else _VIEW
    return replace(effects, acts=statement.checks)


def _first(node: fx.Node) -> tuple[fx.Node, ...]:
    """The first operand of a node; all, where it is none of the graph."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    return (first,) if isinstance(first, fx.Node) else tuple(node.all_input_nodes)


def _positional_inplace(target: Any, node: fx.Node) -> bool:
    """Whether a functional got ``inplace=True`` by position, as in ``F.relu(x, True)``."""
    names = getattr(getattr(target, "__code__", None), "co_varnames", ())
    if "inplace" not in names:
        return False
    position = names.index("inplace")
    return position < len(node.args) and node.args[position] is not False


def _named_effects(node: fx.Node, home: Any) -> Effects:
    """What a method or a function of torch does by its name."""
    name, known = operator_name(node), traits(node)
    if is_in_place(name):
        packet = getattr(torch.ops.aten, name, None)
        random = packet is not None and _declared_effects(packet).random
        return Effects(True, _first(node), random=random)
    if Trait.ALIASES in known:
        return _VIEW
    if Trait.FRESH in known:
        return _FRESH
    packet = getattr(torch.ops.aten, name, None) or getattr(torch.ops.aten, name.strip("_"), None)
    if packet is None:
        # A functional of many operators (F.normalize, F.interpolate): it writes to nothing.
        written = () if hasattr(home, name) else tuple(node.all_input_nodes)
        return Effects(True, written)
    return replace(_declared_effects(packet), writes=_named_writes(node, packet))


def _named_writes(node: fx.Node, packet: torch._ops.OpOverloadPacket) -> tuple[fx.Node, ...]:
    """What a function or a method writes to by its name or by the schemas of its operator."""
    overloads, silent = _overloads(packet), SILENT_WRITES.get(torch_name(node))
    declared = {name for overload in overloads for name in _declared_writes(overload)}
    if not declared and silent is None:
        return ()
    if isinstance(node.target, FunctionType):  # its order of arguments is its own
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
        bound.apply_defaults()
        namings = [bound.arguments]
    else:
        namings = [_by_name(overload, node) for overload in overloads]
    written = [operands.get(name) for operands in namings for name in declared]
    if silent is not None:
        written += [target for operands in namings for target in silent.targets(operands)]
    return tuple(dict.fromkeys(nodes_in(written)))


def _by_name(overload: torch._ops.OpOverload, node: fx.Node) -> dict[str, Any]:
    """The operands of a node by the names that a schema gives them."""
    names = (argument.name for argument in overload._schema.arguments)
    return dict(zip(names, node.args, strict=False)) | node.kwargs


@cache
def _overloads(packet: torch._ops.OpOverloadPacket) -> list[torch._ops.OpOverload]:
    """The overloads of an operator, but for those that write into a given tensor."""
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    return [
        overload
        for overload in overloads
        if not any(argument.is_out for argument in overload._schema.arguments)
    ]


@cache
def _declared_writes(overload: torch._ops.OpOverload) -> list[str]:
    """The names of the tensors of which a schema says that they are written to."""
    return [
        argument.name
        for argument in overload._schema.arguments
        if argument.alias_info is not None
        and argument.alias_info.is_write
        # Of the same name as a tensor's method there are some of lists.
        and str(argument.type) in ("Tensor", "Optional[Tensor]")
    ]


@cache
def _declared_effects(packet: torch._ops.OpOverloadPacket) -> Effects:
    """What the schemas of an operator say of its value."""
    overloads = _overloads(packet)
    return Effects(
        any(result.alias_info for overload in overloads for result in overload._schema.returns),
        (),
        random=any(torch.Tag.nondeterministic_seeded in overload.tags for overload in overloads),
    )


def _schema_effects(target: torch._ops.OpOverload, node: fx.Node) -> Effects:
    schema = target._schema
    written = tuple(dict.fromkeys(nodes_in(written_by(target, node.args, node.kwargs))))
    if schema.is_mutable:
        random = torch.Tag.nondeterministic_seeded in target.tags
        return Effects(True, written, random=random)
    passes_on = Trait.ALIASES in traits(node)
    return Effects(
        passes_on or any(result.alias_info for result in schema.returns),
        written,
        random=torch.Tag.nondeterministic_seeded in target.tags and not passes_on,
    )
