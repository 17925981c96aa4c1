"""The tour of the code names every file, in the order in which data flows."""

import re

from generate.rooms import ROOT, files, first_line, table
from hooks import on_page_markdown

PAGE = (ROOT / "docs" / "code-tour.md").read_text(encoding="utf-8")


def test_the_page_as_it_is_built_names_every_file_and_what_it_does() -> None:
    page = on_page_markdown(PAGE)
    for name in files("reparam"):
        assert f"`{name}` {first_line(ROOT / 'reparam' / name)}" in page
    assert table("reparam") in page


def test_the_files_of_the_text_are_there() -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", PAGE))
    assert len(named) > 30
    assert not {name for name in named if not (ROOT / name).is_file()} - {
        *files("reparam"),
    }


def test_the_rooms_of_the_text_are_there() -> None:
    named = set(re.findall(r"`(\w+(?:/\w+)*/)`", PAGE))
    assert {name for name in named if not name.startswith("tests")} >= {
        f"{file.rpartition('/')[0]}/" for file in files("reparam") if "/" in file
    } - {"cli/", "cli/models/", "report/html/"}
    assert not {
        name for name in named if not any((ROOT / top / name).is_dir() for top in ("", "reparam"))
    }
