"""The rooms of the house: everything has one place, and imports run one way."""

import re
from pathlib import Path

import pytest
from generate.rooms import ROOT, charters, files, first_line, imports, rooms

PACKAGES = "reparam", "repvgg"
ABOVE = {"__init__.py", "__main__.py"}

NEVER = {
    "algebra/": {"modules/"},
    "rules/": {"modules/"},
    "equalization/": {"planning/", "fusing/"},
    "deployment/": {"equalization/", "testing/"},
}
"""What a room does without, though it stands above: only a graph, only tensors, only files."""


def there(package: str) -> set[str]:
    """The files of a package that have a place in it."""
    paths = (ROOT / package).rglob("*.py")
    names = {path.relative_to(ROOT / package).as_posix() for path in paths}
    return {name for name in names if Path(name).name not in ABOVE}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_is_listed_once_by_its_room(package: str) -> None:
    assert sorted(files(package)) == sorted(there(package))


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way_through_rooms_and_files(package: str) -> None:
    place = {name: index for index, name in enumerate(files(package))}

    def is_above(other: str, name: str) -> bool:
        if not other.endswith("/"):
            return place[other] < place[name]
        room = [index for file, index in place.items() if file.startswith(other)]
        return not name.startswith(other) and max(room) < place[name]

    wrong = [
        f"{name} imports {other}"
        for name in place
        for other in imports(package, name)
        if not is_above(other, name)
    ]
    assert not wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_a_room_is_entered_by_its_face(package: str) -> None:
    """Other rooms import what a room's ``__init__.py`` hands on, and it hands on nothing else."""
    inner = [
        f"{name} imports {other}"
        for name in files(package)
        for other in imports(package, name)
        if "/" in other
        and not other.endswith("/")
        and not name.startswith(f"{other.rpartition('/')[0]}/")
    ]
    assert not inner


def test_rooms_do_without_what_they_do_not_need() -> None:
    entered = {room.name: set(room.imports) for room in rooms("reparam")}
    assert {name: entered[name] & others for name, others in NEVER.items()} == {
        name: set() for name in NEVER
    }


def test_the_library_does_not_know_the_model_family() -> None:
    importing = re.compile(r"^\s*(import|from) repvgg\b", re.MULTILINE)
    paths = (ROOT / "reparam").rglob("*.py")
    assert not [path for path in paths if importing.search(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_stay_small(package: str) -> None:
    folders = [ROOT / package, *(path.parent for path in (ROOT / package).glob("*/**/__init__.py"))]
    for folder in folders:
        entries = [path for path in folder.iterdir() if path.name != "__pycache__"]
        assert len(entries) <= 20, folder
        modules = [path for path in entries if path.suffix == ".py" and path.name not in ABOVE]
        assert len(modules) <= 14, folder


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_says_in_one_line_what_it_is(package: str) -> None:
    for name in files(package):
        assert first_line(ROOT / package / name).endswith((".", ")", "?")), name


@pytest.mark.parametrize("package", PACKAGES)
def test_the_guide_has_a_line_on_each_room(package: str) -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert charters(package) in guide
