"""Files are written as a whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from reparam import ReparamError
from reparam.deployment.atomic_write import check_folder, write_files

CONTENTS = {"first.bin": b"1" * 1000, "second.bin": b"2" * 1000}


def test_files_are_written_with_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    paths = write_files(folder, CONTENTS)
    assert paths == [folder / "first.bin", folder / "second.bin"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENTS


def test_files_are_replaced(tmp_path: Path) -> None:
    write_files(tmp_path, {"first.bin": b"old", "other.bin": b"other"})
    write_files(tmp_path, CONTENTS)
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == {**CONTENTS, "other.bin": b"other"}


def test_a_function_may_write_a_file(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        assert path.parent == tmp_path
        assert path.name != "first.bin"  # it is not there before it is whole
        path.write_bytes(b"new")

    write_files(tmp_path, {"first.bin": write, "second.bin": b"2"})
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == {"first.bin": b"new", "second.bin": b"2"}


def test_a_function_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no more")

    write_files(tmp_path, {"first.bin": b"old"})
    with pytest.raises(ReparamError, match=r"cannot write .*first\.bin: no more; free some space"):
        write_files(tmp_path, {"first.bin": write})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"first.bin": b"old"}


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int, error: BaseException) -> None:
    """Lets the given call of a function of `os` raise."""
    real, calls = getattr(os, name), []

    def wrapper(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == call:
            raise error
        return real(*args)

    monkeypatch.setattr(os, name, wrapper)


@pytest.mark.parametrize("call", [1, 2])
def test_an_interruption_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    write_files(tmp_path, {"first.bin": b"old"})
    fail_at(monkeypatch, "fsync", call, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write_files(tmp_path, CONTENTS)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"first.bin": b"old"}


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing_and_names_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fail_at(monkeypatch, name, 1, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(ReparamError) as caught:
        write_files(tmp_path, CONTENTS)
    assert str(caught.value) == (
        f"cannot write {tmp_path / 'first.bin'}: No space left on device; "
        "free some space there or choose another folder"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_fails_later_is_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, "fsync", 2, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(ReparamError, match=r"second\.bin: Input/output error"):
        write_files(tmp_path, CONTENTS)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ReparamError, match=r"cannot write .*file"):
        write_files(tmp_path / "file" / "folder", CONTENTS)


def test_a_folder_that_can_be_made_is_not_made_yet(tmp_path: Path) -> None:
    check_folder(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", [".", "folder"])
def test_a_file_in_the_way_is_found_early(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ReparamError, match=r"cannot write to .*file.* is a file"):
        check_folder(tmp_path / "file" / below)


def test_a_missing_permission_is_found_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Asked through `os.access`, since a test that runs as root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(ReparamError, match=f"no permission to write in {tmp_path}"):
        check_folder(tmp_path / "new")
