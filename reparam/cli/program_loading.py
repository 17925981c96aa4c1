"""Exported programs, read from a file without running code that it brings.

`torch.export.load` unpickles parts of an archive, loads the compiled libraries in it and evaluates
the expressions of its sizes. So an archive is looked at first, and one that would need any of that
is refused.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.utils._sympy import functions as size_functions

from reparam.cli.printing import error_line
from reparam.errors import ReparamError

_DATA = ("data/weights/", "data/constants/", "data/sample_inputs/")

_PICKLED = ("custom_obj_", "opaque_obj_")

_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def load_program(path: Path) -> ExportedProgram:
    """Reads an exported program.

    Args:
        path: A file that `torch.export.save` wrote.

    Returns:
        The program.

    Raises:
        ReparamError: If there is no such file, it is none of these, or reading it would run code.
    """
    if not path.is_file():
        raise ReparamError(f"there is no file {path}")
    _check_archive(path)
    try:
        with _only_weights(), _without_log():
            return torch.export.load(path)
    except Exception as error:
        raise ReparamError(
            f"{path} cannot be read by PyTorch {torch.__version__} "
            f"({error_line(error)}); export the model again"
        ) from error


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            contents = {
                name.partition("/")[2]: json.loads(archive.read(name))
                for name in names
                if name.endswith(".json") and "/extra/" not in name
            }
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ReparamError(
            f"{path} is damaged, or no program that torch.export.save wrote ({error})"
        ) from error
    inner = [name.partition("/")[2] for name in names]
    if "models/model.json" not in inner:
        raise ReparamError(f"{path} holds no program that torch.export.save wrote")
    if len({name.partition("/")[0] for name in names}) > 1 or len(
        {name.casefold() for name in inner}
    ) < len(inner):
        raise ReparamError(f"{path} is no archive of torch.export.save: names in it clash")
    for name in inner:
        if name.startswith("data/") and not name.startswith(_DATA):
            _refuse(path, name)
    for name, content in contents.items():
        for entry in _dictionaries(content):
            if entry.get("use_pickle") or str(entry.get("path_name", "")).startswith(_PICKLED):
                _refuse(path, str(entry.get("path_name")))
            expression = entry.get("expr_str")
            if expression is not None and not _is_size(str(expression)):
                _refuse(path, f"{name}, the size {str(expression)[:40]!r}")


def _refuse(path: Path, what: str) -> None:
    raise ReparamError(
        f"{path} would run code of its own when it is read ({what}), and no such code is run; "
        "where you trust the file, use reparam.fuse on what torch.export.load returns"
    )


def _dictionaries(content: Any) -> Iterator[dict[str, Any]]:
    pending = [content]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield value
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def _is_size(expression: str) -> bool:
    """Whether evaluating an expression can do nothing but arithmetic."""
    try:
        nodes = list(ast.walk(ast.parse(expression, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    called = {id(node.func): node.func for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        if isinstance(node, ast.Name):
            fits = _makes_expression(node.id) if id(node) in called else _is_symbol(node.id)
        elif isinstance(node, ast.Constant):
            fits = not isinstance(node.value, str) or _is_symbol(node.value)
        else:
            fits = isinstance(node, _ARITHMETIC)
        if not fits:
            return False
    return all(isinstance(function, ast.Name) for function in called.values())


_ARITHMETIC = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.Compare,
    ast.Call,
    ast.keyword,
    ast.operator,
    ast.unaryop,
    ast.cmpop,
    ast.expr_context,
)


def _is_symbol(name: str) -> bool:
    return re.fullmatch(r"[a-z]{1,3}\d+|oo|int_oo|zoo", name) is not None


def _makes_expression(name: str) -> bool:
    kind = getattr(size_functions, name, None) or getattr(sympy, name, None)
    return isinstance(kind, type) and issubclass(kind, sympy.Basic)


@contextmanager
def _only_weights() -> Iterator[None]:
    """Lets `torch.load` build nothing but tensors, whoever calls it."""
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


@contextmanager
def _without_log() -> Iterator[None]:
    """Keeps the traceback that PyTorch logs, before it raises, from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
