"""Tests whose outcome is set before a model runs: flags of modules that its code only asks for."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from types import FunctionType
from typing import Any

from torch import nn

from reparam.capture.reading.source import Definition, definition, static_attribute
from reparam.capture.reading.values import NOTHING, Value


def outcome(test: ast.expr, names: Mapping[str, Value], code: Definition) -> bool | None:
    """Whether a test is true as the model is set now; None if that depends on the run.

    Args:
        test: The test.
        names: What names may be.
        code: The function with the test; what it sets itself is no setting.
    """
    match test:
        case ast.Constant(value=value):
            return bool(value)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = outcome(operand, names, code)
            return None if inner is None else not inner
        case ast.BoolOp(op=op, values=several):
            decides = isinstance(op, ast.Or)
            outcomes = {outcome(part, names, code) for part in several}
            if decides in outcomes:
                return decides
            return None if None in outcomes else not decides
        case ast.Attribute(value=ast.Name(id=name), attr=flag) if flag not in _set_by(code):
            settings = {_setting(thing, flag) for thing in names.get(name, NOTHING).itself}
            return settings.pop() if len(settings) == 1 else None
    return None


@cache
def _set_by(code: Definition) -> frozenset[str]:
    """Names of the attributes that code sets."""
    attributes = (node for node in ast.walk(code) if isinstance(node, ast.Attribute))
    return frozenset(node.attr for node in attributes if not isinstance(node.ctx, ast.Load))


def _setting(thing: Any, name: str) -> bool | None:
    """Whether an attribute of a module is true, if it is a plain constant."""
    if not isinstance(thing, nn.Module):
        return None
    value = vars(thing).get(name, static_attribute(type(thing), name, default=...))
    match value:
        case property(fget=FunctionType() as getter):
            code = definition(getter)
            match code.body[-1:] if code else []:
                case [
                    ast.Return(
                        value=ast.Attribute(value=ast.Name(id="self"), attr=flag)
                        | ast.Call(
                            func=ast.Name(id="bool"),
                            args=[ast.Attribute(value=ast.Name(id="self"), attr=flag)],
                        )
                    )
                ] if flag != name:
                    return _setting(thing, flag)
        case bool() | int() | str() | None:
            return bool(value)
        case list() | tuple() | dict() | set() if not value:
            return False
    return None
