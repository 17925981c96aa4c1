"""What is known of the operators of a graph by their names alone."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from reparam.capture.writes import assign

_METADATA = set("shape ndim dtype device requires_grad is_cuda names layout".split())

_METADATA_METHODS = set(
    "size dim ndimension numel nelement is_floating_point stride get_device element_size "
    "is_contiguous".split()
)

_METADATA_OPERATORS = set("sym_size sym_numel".split())

_ARITHMETIC = {
    getattr(operator, name)
    for name in "add sub mul truediv floordiv mod pow neg eq ne lt le gt ge".split()
}

_FRESH_OPERATORS = _ARITHMETIC | {operator.matmul, operator.and_, operator.or_, operator.invert}

RETURN_WHAT_THEY_WROTE = {
    getattr(operator, name)
    for name in "iadd isub imul itruediv ifloordiv imod ipow iand ior ixor imatmul".split()
}

"""Python's own operators in place."""

NUMBER_FUNCTIONS = _ARITHMETIC | RETURN_WHAT_THEY_WROTE | {
    operator.getitem, int, float, max, min, len, round, abs, bool,
    torch.sym_int, torch.sym_float, torch.sym_max, torch.sym_min,
}  # fmt: skip

"""Functions that make numbers of numbers."""


def reads_metadata(node: fx.Node) -> bool:
    """Whether a node only asks for a shape, a type or a device."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in _METADATA
    if isinstance(node.target, torch._ops.OpOverload):
        return operator_name(node) in _METADATA_OPERATORS
    return node.op == "call_method" and node.target in _METADATA_METHODS


def reads_shape_only(reader: fx.Node, node: fx.Node) -> bool:
    """Whether a reader of a value only asks for its shape or type."""
    if reads_metadata(reader):
        return True
    return (
        reader.op in ("call_method", "call_function")
        and operator_name(reader) in _SHAPE_READERS
        and bool(reader.args)
        and reader.args[0] is not node
    )


_SHAPE_READERS = {"reshape_as", "view_as", "expand_as", "type_as"}


def operator_name(node: fx.Node) -> str:
    """The name of a function, a method or an ATen operator, without its overload."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target.overloadpacket.__name__)
    return str(getattr(node.target, "__name__", node.target))


CONVERSIONS = {
    "to": None,
    "_to_copy": None,
    "type": None,
    "type_as": None,
    "float": torch.float32,
    "double": torch.float64,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "long": torch.int64,
    "int": torch.int32,
}

"""Operators that give a value another type, and the type, where their name tells."""


def converts(node: fx.Node) -> bool:
    """Whether a node gives a value the type that it is asked for."""
    known = node.op == "call_method" or isinstance(node.target, torch._ops.OpOverload)
    return known and operator_name(node) in CONVERSIONS


def is_torch(target: Any) -> bool:
    """Whether a function is torch's own, whose name says what it does."""
    name, module = getattr(target, "__name__", ""), getattr(target, "__module__", None) or ""
    if target is assign:
        return True  # a tensor's own way to take an assignment
    if module == "torch" or module.startswith("torch."):
        return True
    if isinstance(target, torch._ops.OpOverload):
        return True
    homes = (torch, F, torch._C._nn, operator)
    return any(getattr(home, name, None) is target for home in homes)


def permutes(node: fx.Node) -> bool:
    """Whether a node only changes the order of axes, and so the layout in memory."""
    return operator_name(node) in ("permute", "transpose", "swapaxes", "swapdims")


def indexes(node: fx.Node) -> bool:
    """Whether a node only takes a part of its operand, and copies nothing."""
    return operator_name(node) in ("getitem", "narrow", "slice")


def computes(node: fx.Node) -> bool:
    """Whether a node runs an arithmetic operator, even if it changes nothing: ``x + 0``."""
    return node.op != "call_module" and operator_name(node).strip("_") in _ARITHMETIC_NAMES


_ARITHMETIC_NAMES = set("add sub mul div truediv iadd isub imul itruediv neg leaky_relu".split())
