"""What a new operator takes over from those that it replaces: what is said of them.

Tools find operators by the metadata of their nodes (quantisers ask which function made a node, and
in which module), and by what users set on their modules. A new operator says what the one of its
kind said that it replaces.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import chain
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, fx, nn

from reparam.capture import torch_name
from reparam.capture.reading import attributes_set

_OF_OPERATORS = ("nn_module_stack", "stack_trace", "torch_fn", "source_fn_stack", "custom")

_OF_VALUES = ("val", "tensor_meta", "example_value")

_LINEAR = ("linear", "addmm", "mm")


def replaced_operator(
    module: nn.Module, root: nn.Module, dying: Iterable[fx.Node]
) -> fx.Node | None:
    """The first of some dying nodes that is an operator of the kind of a new one."""
    kind = _function(module)
    alike = [node for node in dying if _is_like(_name(node, root), kind)]
    same = (node for node in alike if _name(node, root) == kind)
    return next(same, alike[0] if alike else None)


def describe_operator(new: fx.Node, module: nn.Module, old: fx.Node | None, value: fx.Node) -> None:
    """Let the node of a new operator say what the one that it replaces said.

    Where it replaces none of its kind, it stands where its value was computed, and says what it is.
    """
    _describe(new, value if old is None else old)
    function = _function(module)
    if old is None and "torch_fn" in new.meta:
        new.meta["torch_fn"] = (new.name, f"builtin_function_or_method.{function}")
    if old is None and "source_fn_stack" in new.meta:
        new.meta["source_fn_stack"] = [*new.meta["source_fn_stack"][:-1], (new.name, type(module))]


def describe_helper(new: fx.Node, value: fx.Node) -> None:
    """Let a node that prepares what a new operator reads say where it stands, and what it is."""
    _describe(new, value)
    name = new.target if isinstance(new.target, str) else new.target.__name__
    if "torch_fn" in new.meta:
        new.meta["torch_fn"] = (new.name, f"builtin_function_or_method.{name}")
    if "source_fn_stack" in new.meta:
        new.meta["source_fn_stack"] = [*new.meta["source_fn_stack"][:-1], (new.name, new.target)]


def describe_value(new: fx.Node, value: fx.Node) -> None:
    """Let a node say of its value what was said of the one that it stands for."""
    new.meta.update({key: value.meta[key] for key in _OF_VALUES if key in value.meta})


def _describe(new: fx.Node, old: fx.Node) -> None:
    new.meta.update({key: old.meta[key] for key in _OF_OPERATORS if key in old.meta})


def _function(module: nn.Module) -> str:
    """The function that an operator's module runs: ``conv2d``, ``conv_transpose2d``, ``linear``."""
    return type(module).__name__.lower().replace("transpose", "_transpose")


def _name(node: fx.Node, root: nn.Module) -> str:
    if node.op != "call_module":
        return torch_name(node)
    kinds = type(root.get_submodule(str(node.target))).__mro__
    return next((k.__name__ for k in kinds if k.__module__.startswith("torch.nn")), "").lower()


def _is_like(name: str, function: str) -> bool:
    """Whether an operator is one of the kind of a function, as core ATen writes it or a module."""
    if function == "linear":
        return name in _LINEAR
    return name.replace("_", "") == function.replace("_", "") or name == "convolution"


def take_attributes(new: nn.Module, replaced: Iterable[nn.Module]) -> None:
    """Give a new module what users set on those that it replaces; the first that has it decides."""
    for old in replaced:
        for name in vars(old).keys() - vars(new).keys() - _set_by_class(type(old)):
            value = vars(old)[name]
            if not isinstance(value, Tensor | nn.Module | FunctionType | MethodType):
                vars(new)[name] = _copied(value)


def _set_by_class(kind: type) -> set[str]:
    """The attributes that the methods of a class of modules set."""
    bases = kind.__mro__[: kind.__mro__.index(nn.Module)]
    methods = (value for base in bases for value in vars(base).values())
    codes = (value.__code__ for value in methods if isinstance(value, FunctionType))
    return set(chain.from_iterable(map(attributes_set, codes)))


def _copied(value: Any) -> Any:
    """A list or the like is copied, so that a change of it is no change of the user's."""
    return copy.copy(value) if isinstance(value, list | dict | set) else value
