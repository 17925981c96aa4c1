"""Runs the command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from reparam.cli import main


@dataclass(frozen=True)
class Outcome:
    """What one call of the program did."""

    code: int
    out: str
    err: str

    @property
    def values(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls the program in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(words: str, code: int = 0) -> Outcome:
        capsys.readouterr()
        found = main(words.split())
        captured = capsys.readouterr()
        assert found == code, captured.err
        return Outcome(found, captured.out, captured.err)

    return call
