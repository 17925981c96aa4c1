"""What a stranger's exported program may say: computations on tensors, arithmetic, plain names.

`torch.export.load` makes Python code of much that an archive holds: it looks operators up by name,
evaluates sizes, runs guards, and writes names into the source of a forward. Everything here is
compared with what an export writes, and has an end.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Container, Iterator
from typing import Any

import sympy
import torch
from torch.utils._sympy import functions as size_functions

from reparam.capture import computes_on_tensors

LONGEST = 2**28
"""How many bytes of JSON an archive may hold."""

_LONGEST_EXPRESSION = 20_000

_MOST_BITS = 4096
"""How long a number may become: sizes have 63 bits, and programs multiply few of them."""


def refused(content: Any) -> str | None:
    """What in the JSON of an archive is no part of an ordinary program; None if all is."""
    try:
        return _refused(content)
    except (RecursionError, AttributeError, LookupError, TypeError, ValueError) as error:
        return f"it is written otherwise, {type(error).__name__}"


def _refused(content: Any) -> str | None:
    for entry in dictionaries(content, _CHECKS):
        for key, value in entry.items():
            check = _CHECKS.get(key)
            if not _is_plain(key) or not (check(value) if check else _is_plain(value)):
                return f"{key[:40]} {str(value)[:60]!r}"
        for node in entry.get("nodes") or ():
            if not _is_operator(node.get("target")):
                return f"the operator {str(node.get('target'))[:60]!r}"
    return "a number without end" if not _is_bounded(content) else None


def dictionaries(content: Any, closed: Container[str] = ()) -> Iterator[dict[str, Any]]:
    """All dictionaries in a file's content, but for those under keys that are closed."""
    pending = [content]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield value
            pending.extend(held for key, held in value.items() if key not in closed)
        elif isinstance(value, list):
            pending.extend(value)


def _is_plain(value: Any) -> bool:
    """Whether a value can be written into source, and is no huge number."""
    if isinstance(value, str):
        return re.search(r"[\"'\\\x00-\x1f]", value) is None
    if isinstance(value, int):
        return abs(value) < 2**64
    entries = value if isinstance(value, list) else ()
    return all(isinstance(entry, dict) or _is_plain(entry) for entry in entries)


def _is_name(value: Any) -> bool:
    """Whether a value is a name of Python's, or none at all."""
    return value is None or (isinstance(value, str) and (value == "" or value.isidentifier()))


def _are_names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(map(_is_name, value)))


def _is_text(value: Any) -> bool:
    """Whether a value is a string that nothing is made of, or several."""
    several = value if isinstance(value, list) else [value]
    return all(entry is None or isinstance(entry, str) for entry in several)


def _is_metadata(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


# -- Operators ------------------------------------------------------------------------------------

_ON_SIZES = frozenset(
    "torch.sym_float torch.sym_int torch.sym_not torch.sym_max torch.sym_min torch.sym_ite "
    "torch._sym_sqrt math.trunc math.ceil math.floor _operator.getitem _operator.pow _operator.add "
    "_operator.sub _operator.mul _operator.floordiv _operator.truediv _operator.mod _operator.neg "
    "_operator.pos _operator.lt _operator.le _operator.eq _operator.ne _operator.ge _operator.gt "
    "_operator.and_ _operator.or_ _operator.rshift".split()
)

_OF_CONTROL = frozenset(
    f"torch.ops.higher_order.{name}"
    for name in "cond map_impl scan wrap_with_set_grad_enabled wrap_with_autocast".split()
)


def _is_operator(target: Any) -> bool:
    """Whether the name of an operator is that of one that only computes."""
    if not isinstance(target, str):
        return False
    if target in _ON_SIZES or target in _OF_CONTROL:
        return True
    match = re.fullmatch(r"torch\.ops\.(aten|prims)\.(\w+)\.(\w+)", target)
    if match is None:
        return False
    packet = getattr(getattr(torch.ops, match[1]), match[2], None)
    operator = getattr(packet, match[3], None)
    return isinstance(operator, torch._ops.OpOverload) and computes_on_tensors(operator)


# -- Sizes ----------------------------------------------------------------------------------------

_KINDS = frozenset(
    "Symbol Integer Float Rational Add Mul Pow Max Min Abs Mod floor ceiling Piecewise Eq Ne Le Lt "
    "Ge Gt And Or Not Equality Unequality LessThan StrictLessThan GreaterThan StrictGreaterThan "
    "FloorDiv ModularIndexing Where PythonMod CleanDiv CeilDiv CeilToInt FloorToInt TruncToInt "
    "TruncToFloat RoundToInt RoundDecimal ToFloat IntTrueDiv FloatTrueDiv FloatPow PowByNatural "
    "IsNonOverlappingAndDenseIndicator Identity OpaqueUnaryFn_sqrt".split()
)

_MOST_POWERS = 64

_POWERS = ("Pow", "PowByNatural", "FloatPow")


def is_size(expression: Any) -> bool:
    """Whether evaluating an expression is arithmetic that ends."""
    try:
        return _bits(_parsed(expression)) <= _MOST_BITS
    except (_OtherCodeError, SyntaxError, ValueError, RecursionError, MemoryError):
        return False


class _OtherCodeError(Exception):
    """An expression that is no arithmetic on sizes."""


def _parsed(expression: Any) -> ast.expr:
    if not isinstance(expression, str) or len(expression) > _LONGEST_EXPRESSION:
        raise _OtherCodeError
    return ast.parse(expression.strip(), mode="eval").body


def _bits(node: ast.AST) -> int:
    """How many bits a size has at most.

    Raises:
        _OtherCodeError: If it is none.
    """
    match node:
        case ast.Constant(value=bool() | float()) | ast.Name(id="true" | "false"):
            return 64
        case ast.Constant(value=int(value)):
            return value.bit_length()
        case ast.Constant(value=str(name)) | ast.Name(id=name) if _is_symbol(name):
            return 64
        case ast.UnaryOp(op=ast.UAdd() | ast.USub() | ast.Not() | ast.Invert(), operand=operand):
            return _bits(operand) + 1
        case ast.BinOp(left=base, op=ast.Pow(), right=exponent):
            return _bits(base) * _exponent(exponent)
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.FloorDiv()):
            return _bits(node.left) + _bits(node.right) + 1
        case ast.BinOp(op=ast.Mod() | ast.BitAnd() | ast.BitOr()):
            return _bits(node.left) + _bits(node.right)
        case ast.Compare(left=left, comparators=others):
            return max(map(_bits, (left, *others)))
        case ast.Call(func=ast.Name(id=name), args=args) if _makes_size(name):
            if name in _POWERS:
                base, exponent = args
                return _bits(base) * _exponent(exponent)
            bits = [_bits(value) for value in (*args, *(word.value for word in node.keywords))]
            return sum(bits) + len(bits)
    raise _OtherCodeError


def _exponent(node: ast.AST) -> int:
    """An exponent: a small number, maybe one that divides."""
    match node:
        case ast.Constant(value=int() | float() as value) if value <= _MOST_POWERS:
            return max(int(value), 1)
        case ast.Call(func=ast.Name(id="Integer" | "Float"), args=[ast.Constant() as value]):
            return _exponent(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _exponent(operand)
    raise _OtherCodeError


def _is_symbol(name: str) -> bool:
    return re.fullmatch(r"[a-z]{1,3}\d+|oo|int_oo|zoo", name) is not None


def _makes_size(name: str) -> bool:
    kind = getattr(size_functions, name, None) or getattr(sympy, name, None)
    return name in _KINDS and kind is not None


def _is_bounded(content: Any) -> bool:
    """Whether the numbers that a program computes of numbers stay short."""
    bits: dict[str, int] = {}
    for entry in dictionaries(content, _CHECKS):
        for node in entry.get("nodes") or ():
            target = str(node.get("target"))
            if not target.startswith(("_operator.", "math.", "torch.")):
                continue
            longest = _bits_of(target, node, bits)
            if longest > _MOST_BITS:
                return False
            for made in dictionaries(node.get("outputs"), _CHECKS):
                bits.update((str(name), longest) for name in made.values())
    return True


def _bits_of(target: str, node: dict[str, Any], bits: dict[str, int]) -> int:
    """How many bits the value of an operator on sizes has at most."""
    operands = []
    for operand in node.get("inputs") or ():
        held = [
            value for entry in dictionaries(operand["arg"], _CHECKS) for value in entry.values()
        ]
        longest = [bits.get(value, 64) for value in held if isinstance(value, str)]
        longest += [abs(value).bit_length() for value in held if isinstance(value, int)]
        operands.append(max(longest, default=0))
    if target == "_operator.pow":
        base, exponent = operands
        return base * 2**exponent if 2 ** min(exponent, 64) <= _MOST_POWERS else _MOST_BITS + 1
    return sum(operands) + 1 if target == "_operator.mul" else max(operands, default=0) + 1


# -- Guards and structures ------------------------------------------------------------------------

_ASKED = ("size", "stride", "storage_offset", "dim")


def is_guard(code: Any) -> bool:
    """Whether a guard only compares sizes of the inputs."""
    try:
        return all(map(_is_in_guard, ast.walk(_parsed(code))))
    except (_OtherCodeError, SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_in_guard(node: ast.AST) -> bool:
    match node:
        case ast.Name(id=name):
            return name in ("L", "max", "min", "inf", "math", "Max", "Min", "Mod", "FloorDiv")
        case ast.Attribute(value=ast.Name(id="math"), attr=name):
            return name in ("inf", "isnan", "ceil", "floor", "trunc")
        case ast.Attribute(attr=name):
            return name in _ASKED
        case ast.Constant(value=str(key)):
            return re.fullmatch(r"[\w. -]+", key) is not None
        case ast.Constant(value=value):
            return value is None or (isinstance(value, int | float) and abs(value) < 2**64)
        case ast.BinOp(op=operation):
            return not isinstance(operation, ast.Pow | ast.LShift | ast.MatMult)
        case ast.Subscript() | ast.Call() | ast.Compare() | ast.BoolOp() | ast.UnaryOp():
            return True
    return isinstance(node, ast.operator | ast.unaryop | ast.cmpop | ast.boolop | ast.expr_context)


_CONTAINERS = {
    None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict",
    "collections.deque", "torch.fx.immutable_collections.immutable_list",
    "torch.fx.immutable_collections.immutable_dict", "torch.Size",
}  # fmt: skip


def is_structure(text: Any) -> bool:
    """Whether a structure of arguments or results is made of containers that nobody imports."""
    try:
        _, outermost = json.loads(text)
        pending = [outermost]
        while pending:
            spec = pending.pop()
            if spec["type"] not in _CONTAINERS:
                return False
            held = spec["context"]
            if not _is_context(json.loads(held) if isinstance(held, str) else held):
                return False
            pending.extend(spec["children_spec"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    return True


def _is_context(value: Any) -> bool:
    """Whether it says nothing but the keys of a dictionary, or a length."""
    keys = value if isinstance(value, list) else [value]
    return all(not isinstance(key, list | dict) and (key is None or _is_plain(key)) for key in keys)


def _are_guards(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_guard, value))


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "expr_str": is_size,
    "guards_code": _are_guards,
    "in_spec": is_structure,
    "out_spec": is_structure,
    "metadata": _is_metadata,
    "as_string": _is_text,
    "as_strings": _is_text,
    "as_operator": _is_operator,
    "name": _is_name,
    "as_name": _is_name,
    "forward_arg_names": _are_names,
}
"""What some keys hold; of all others the strings are only kept from being more than a name."""
