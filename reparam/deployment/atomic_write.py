"""Writes files so that each is there as a whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from reparam.errors import ReparamError


def check_folder(folder: Path) -> None:
    """Refuses a folder that `write_files` could not write to, before the work is done.

    Raises:
        ReparamError: If a file is in the way or permission is missing.
    """
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise ReparamError(f"cannot write to {folder}: {nearest} is a file; choose another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ReparamError(
            f"cannot write to {folder}: no permission to write in {nearest}; choose another folder"
        )


def write_files(
    folder: Path, contents: Mapping[str, bytes | Callable[[Path], object]]
) -> list[Path]:
    """Writes files into a folder, which is made if it is missing.

    All are written under temporary names first, and take their own names only when all have been
    written: a full disk or an interruption leaves what was there before.

    Args:
        folder: Where to write.
        contents: The bytes of each file by its name, or a function that writes them to the path
            that it gets, where a copy of them in memory would be large.

    Returns:
        The paths of the files, in the order of `contents`.

    Raises:
        ReparamError: If the system refuses, say because the disk is full.
    """
    partial = {folder / name: folder / f".{name}.{os.getpid()}.partial" for name in contents}
    current = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, temporary in partial.items():
            current = path
            _write(temporary, contents[path.name])
        for path, temporary in partial.items():
            current = path
            os.replace(temporary, path)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, None)  # none of torch's own
        advice = "free some space there or choose" if full else "choose"
        raise ReparamError(
            f"cannot write {current}: {error.strerror or error}; {advice} another folder"
        ) from error
    finally:
        for temporary in partial.values():
            # A leftover that cannot be removed must not hide the error that is on its way.
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    return list(partial)


def _write(path: Path, content: bytes | Callable[[Path], object]) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    with path.open("rb+") as file:
        # Some file systems report a full disk only here.
        os.fsync(file.fileno())


def remove_partial_files(folder: Path) -> None:
    """Removes what processes that were killed had not finished writing."""
    for leftover in folder.glob(".*.partial"):
        with suppress(OSError):
            leftover.unlink()
