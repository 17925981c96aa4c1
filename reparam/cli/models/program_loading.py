"""Exported programs, read from a file without running code that it brings.

`torch.export.load` unpickles parts of an archive, loads the compiled libraries in it, and makes
code of what it says (`program_checks`). So an archive is looked at first, and one that would need
any of that is refused.
"""

from __future__ import annotations

import json
import logging
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from reparam.cli.models.program_checks import LONGEST, dictionaries, refused
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
    names, contents = _read(path)
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
        for entry in dictionaries(content):
            if entry.get("use_pickle") or str(entry.get("path_name", "")).startswith(_PICKLED):
                _refuse(path, str(entry.get("path_name")))
        what = refused(content)
        if what is not None:
            _refuse(path, f"{name}, {what}")


def _read(path: Path) -> tuple[list[str], dict[str, Any]]:
    """The names of an archive's entries, and those that are JSON."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            written = [info for info in infos if info.filename.endswith(".json")]
            if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
                raise ReparamError(f"{path} is compressed, which torch.export.save does not do")
            if sum(info.file_size for info in written) > LONGEST:
                raise ReparamError(f"{path} says more than {LONGEST} bytes of its program")
            contents = {
                info.filename.partition("/")[2]: json.loads(archive.read(info))
                for info in written
                if "/extra/" not in info.filename
            }
    except (zipfile.BadZipFile, OSError, ValueError, RecursionError) as error:
        raise ReparamError(
            f"{path} is damaged, or no program that torch.export.save wrote ({error})"
        ) from error
    return [info.filename for info in infos], contents


def _refuse(path: Path, what: str) -> None:
    raise ReparamError(
        f"{path} would run code of its own when it is read ({what}), and no such code is run; "
        "where you trust the file, use reparam.fuse on what torch.export.load returns"
    )


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
