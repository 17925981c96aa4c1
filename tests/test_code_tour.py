"""The tour of the code names every file, in the order in which imports run."""

import re
from pathlib import Path

import pytest
from generate.layers import file_of, first_line, imports, layers, table
from hooks import on_page_markdown

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "code-tour.md").read_text(encoding="utf-8")
PACKAGES = "reparam", "repvgg"
ABOVE = {"__init__.py", "__main__.py"}


def order(package: str) -> list[str]:
    return [name for layer in layers(package) for name in layer.files]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_has_one_place(package: str) -> None:
    names = order(package)
    there = {file_of(path, package) for path in (ROOT / package).rglob("*.py")} - ABOVE
    assert sorted(names) == sorted(there), "the table of CONTRIBUTING.md"


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package: str) -> None:
    """Also within a row of the table: a file imports those before it."""
    place = {name: index for index, name in enumerate(order(package))}
    wrong = [
        f"{name} imports {other}"
        for name, others in imports(package).items()
        for other in others
        if place[other] >= place[name]
    ]
    assert not wrong


def test_the_library_does_not_know_the_model_family() -> None:
    files = (ROOT / "reparam").rglob("*.py")
    importing = re.compile(r"^\s*(import|from) repvgg\b", re.MULTILINE)
    assert not [path for path in files if importing.search(path.read_text(encoding="utf-8"))]


def test_the_page_as_it_is_built_names_every_file_and_what_it_does() -> None:
    page = on_page_markdown(PAGE)
    for path in (ROOT / "reparam").rglob("*.py"):
        name = path.relative_to(ROOT / "reparam").as_posix()
        if name not in ABOVE and path.name != "__init__.py":
            assert f"`{name}` {first_line('reparam', name)}" in page
    assert table("reparam") in page


def test_the_files_of_the_text_are_there() -> None:
    named = re.findall(r"`(\w+\.py)`", PAGE)
    assert len(set(named)) > 30
    assert not set(named) - {path.name for path in (ROOT / "reparam").rglob("*.py")}


def test_every_file_says_in_one_line_what_it_is() -> None:
    for package in PACKAGES:
        for name in order(package):
            assert first_line(package, name).endswith((".", ")", "?")), name
