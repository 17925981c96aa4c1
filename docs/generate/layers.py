"""The layers of a package: its files in the order of CONTRIBUTING.md, and what they import."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_NAME = re.compile(r"`(\w+(?:\.py|/))`")


@dataclass(frozen=True)
class Layer:
    """One row of the table.

    Args:
        files: Files, and packages with a slash at the end, in the order in which imports go.
        holds: What they are for.
    """

    files: tuple[str, ...]
    holds: str


def layers(package: str) -> list[Layer]:
    """The layers of a package, from the lowest one, as CONTRIBUTING.md lists them."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(rf"^`{package}/` is.*?^\| ---.*?\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"CONTRIBUTING.md has no table for {package}/")
    rows = [line.strip("|").split("|") for line in found[1].splitlines()]
    return [Layer(tuple(_NAME.findall(files)), holds.strip()) for files, holds in rows]


def file_of(path: Path, package: str) -> str:
    """What the table calls a file: its name, or the folder that it lies in."""
    first, *more = path.relative_to(ROOT / package).parts
    return f"{first}/" if more else first


def imports(package: str) -> dict[str, set[str]]:
    """For each file of a package what it imports of the package, as the table calls them.

    Args:
        package: The package. Its own ``__init__.py`` and ``__main__.py`` stand above all layers.
    """
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        name = file_of(path, package)
        if name not in ("__init__.py", "__main__.py"):
            found.setdefault(name, set()).update(_imported(path, package) - {name})
    return found


def first_line(package: str, name: str) -> str:
    """The first line of the docstring of a file, or of a folder's ``__init__.py``."""
    path = ROOT / package / name
    tree = ast.parse((path / "__init__.py" if path.is_dir() else path).read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def table(package: str) -> str:
    """The layers as a Markdown table, from the lowest one, with what each is built on."""
    listed = layers(package)
    level = {name: index for index, layer in enumerate(listed, 1) for name in layer.files}
    used = imports(package)
    lines = ["| layer | files | imports from |", "| --- | --- | --- |"]
    for index, layer in enumerate(listed, 1):
        files = "<br>".join(line for name in layer.files for line in _described(package, name))
        below = {level[other] for name in layer.files for other in used[name]} - {index}
        on = ", ".join(map(str, sorted(below))) or "torch alone"
        lines.append(f"| {index}: {layer.holds} | {files} | {on} |")
    return "\n".join(lines) + "\n"


def _described(package: str, name: str) -> list[str]:
    """A line on a file; of a folder, one on each of its files."""
    path = ROOT / package / name
    names = [name]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.py") if file.name != "__init__.py")
        names += [file.relative_to(ROOT / package).as_posix() for file in files]
    return [f"`{one}` {first_line(package, one)}" for one in names]


def _imported(path: Path, package: str) -> set[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == package:
            names += [f"{package}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            names.append(node.module)
    parts = [name.split(".")[1] for name in names if name.startswith(f"{package}.")]
    # What is no file is a name of the package itself, as in `from repvgg import zoo, RepVGG`.
    files = {f"{part}/" if (ROOT / package / part).is_dir() else f"{part}.py" for part in parts}
    return {name for name in files if (ROOT / package / name).exists()}
