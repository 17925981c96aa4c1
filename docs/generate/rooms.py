"""The rooms of a package, in the order of its docstrings, and what they import."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_LISTED = re.compile(
    r"^(?:Rooms|Files), in the order in which data flows: (.*?)\.(?:\n\n|$)", re.M | re.S
)


@dataclass(frozen=True)
class Room:
    """A folder of a package, or a file beside its folders.

    Args:
        name: Its path in the package, with a slash at the end if it is a folder.
        charter: What is in it: the first line of its docstring.
        files: Its files, by their path in the package, in the order in which data flows.
        imports: The names of the rooms that it imports from.
    """

    name: str
    charter: str
    files: tuple[str, ...]
    imports: tuple[str, ...]


def rooms(package: str) -> list[Room]:
    """The rooms of a package, in the order in which data flows.

    Args:
        package: A folder of this repository.

    Raises:
        ValueError: If a docstring does not list what is in its folder.
    """
    names = _entries(ROOT / package)
    return [_room(package, name, [other for other in names if other != name]) for name in names]


def files(package: str, room: str = "") -> list[str]:
    """The files of a package or of one of its rooms, in the order in which data flows.

    Args:
        package: A folder of this repository.
        room: The path of a room in it; without one, the whole package.
    """
    if room.endswith(".py"):
        return [room]
    below = _entries(ROOT / package / room)
    return [file for entry in below for file in files(package, room + entry)]


def imports(package: str, file: str) -> set[str]:
    """The files of a package that one of them imports; a name from a face is that of its room.

    Args:
        package: A folder of this repository.
        file: The path of a file in it.
    """
    tree = ast.parse((ROOT / package / file).read_text(encoding="utf-8"))
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            modules.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {path for module in modules if (path := _file_of(module, package)) is not None}


def first_line(path: Path) -> str:
    """The first line of the docstring of a file, or of a folder's ``__init__.py``."""
    return _docstring(path).partition("\n")[0]


def table(package: str) -> str:
    """The rooms as a Markdown table, with a line on each file."""
    lines = ["| room | files | imports from |", "| --- | --- | --- |"]
    for room in rooms(package):
        described = "<br>".join(
            f"`{file}` {first_line(ROOT / package / file)}" for file in room.files
        )
        below = ", ".join(f"`{name}`" for name in room.imports) or "no other room"
        lines.append(f"| `{room.name}`: {room.charter} | {described} | {below} |")
    return "\n".join(lines) + "\n"


def charters(package: str) -> str:
    """The rooms as a Markdown table, with a line on each."""
    rows = [f"| `{room.name}` | {room.charter} |" for room in rooms(package)]
    return "\n".join(["| room | holds |", "| --- | --- |", *rows]) + "\n"


def _entries(folder: Path) -> list[str]:
    """What the docstring of a folder lists: files, and folders with a slash at the end."""
    listed = _LISTED.search(_docstring(folder))
    if listed is None:
        raise ValueError(f"the docstring of {folder}/__init__.py does not list what is in it")
    names = re.findall(r"`(\w+)`", listed[1])
    return [f"{name}/" if (folder / name).is_dir() else f"{name}.py" for name in names]


def _docstring(path: Path) -> str:
    source = path / "__init__.py" if path.is_dir() else path
    return ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""


def _room(package: str, name: str, others: list[str]) -> Room:
    """A room, and which of the others it imports from."""
    inside = files(package, name)
    used = {path for file in inside for path in imports(package, file)}
    entered = (other for other in others if any(path.startswith(other) for path in used))
    return Room(name, first_line(ROOT / package / name), tuple(inside), tuple(entered))


def _file_of(module: str, package: str) -> str | None:
    """The file of a package that a dotted name leads to; the face of a room is its folder."""
    first, *names = module.split(".")
    if first != package:
        return None
    path = ""
    for name in names:
        if (ROOT / package / path / name).is_dir():
            path += f"{name}/"
        elif (ROOT / package / path / f"{name}.py").is_file():
            return f"{path}{name}.py"
        else:
            break
    return path or None
