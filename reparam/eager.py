"""Which parts of an untraceable module its code only ever calls.

Inside a part that eager code merely calls, operators may be fused. A part whose own parts that
code reaches, by name or by iteration, must stay as it is: it may run one of them alone.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from typing import Any

from torch import nn

_REACHES_EVERYTHING = {
    "children",
    "modules",
    "named_children",
    "named_modules",
    "_modules",
    "get_submodule",
    "getattr",
    "vars",
    "__dict__",
    "apply",
}
_HARMLESS = {"train", "eval", "to", "parameters", "state_dict", "training"}


def only_called(module: nn.Module) -> dict[str, nn.Module]:
    """The children of an eager module that its code calls and does nothing else with.

    Args:
        module: A module that was not traced.
    """
    if type(module) in (nn.ModuleList, nn.ModuleDict):
        return {}  # whoever holds the list decides what is called
    kind: Any = type(module)
    names = _touched_names(kind)
    if names is None:
        return {}
    return {name: child for name, child in module.named_children() if name not in names}


@cache
def _touched_names(kind: Any) -> frozenset[str] | None:
    """Attributes of self that a class's code uses in another way than calling them."""
    touched: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.startswith("torch.nn.modules") or base is object:
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            return None
        for function in ast.walk(tree):
            functions = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
            if not isinstance(function, functions) or _name(function) == "__init__":
                continue
            called = {id(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
            held = {
                id(node.value) for node in ast.walk(function) if isinstance(node, ast.Attribute)
            }
            arguments = [*function.args.posonlyargs, *function.args.args]
            own = arguments[0].arg if arguments else "self"
            for node in ast.walk(function):
                if isinstance(node, ast.Name) and node.id in _REACHES_EVERYTHING:
                    return None
                if isinstance(node, ast.Name) and node.id == own and id(node) not in held:
                    return None  # it hands itself on, and who gets it may reach anything
                if not isinstance(node, ast.Attribute):
                    continue
                if node.attr in _REACHES_EVERYTHING:
                    return None
                if id(node) not in called:
                    touched.add(node.attr)
    return frozenset(touched - _HARMLESS)


def _name(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> str:
    return "" if isinstance(function, ast.Lambda) else function.name
