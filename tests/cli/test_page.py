"""The commands of docs/command-line.md do what the page says."""

from __future__ import annotations

import doctest
import re
import sys
from pathlib import Path

import pytest

from reparam.cli import main

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "command-line.md").read_text("utf-8")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def commands() -> list[tuple[str, str]]:
    """Each command of the page, and what it prints."""
    blocks = re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    pieces = [piece for block in blocks for piece in re.split(r"^\$ ", block, flags=re.M)[1:]]
    return [(piece.partition("\n")[0], piece.partition("\n")[2]) for piece in pieces]


def test_commands_print_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    source = re.search(r"^```python\n(# nets\.py\n.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert source is not None
    (tmp_path / "nets.py").write_text(source[1])
    checker = doctest.OutputChecker()
    for command, expected in commands():
        words = command.split()
        assert words[0] == "reparam"
        assert main(words[1:]) == 0
        printed = capsys.readouterr().out
        if expected.startswith("{"):  # the end is left out
            expected += "..."
        assert checker.check_output(expected, printed, FLAGS), f"{command}\n{printed}"
    monkeypatch.delitem(sys.modules, "nets")
    assert len(commands()) == 7


def test_every_command_and_exit_code_is_on_the_page() -> None:
    assert all(f"`{name}`" in PAGE for name in ("plan", "fuse", "verify", "bench", "rules"))
    assert all(re.search(rf"^\| {code} \|", PAGE, re.M) for code in (0, 1, 2, 3, 130))
