"""The command line: what it passes on and its exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import repvgg.__main__
import repvgg.demo
from reparam import ReparamError
from repvgg.cli import main


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replaces the demo by a record of its arguments and of the number of threads."""
    record: list[dict[str, Any]] = []

    def run_demo(output: Path, **options: Any) -> None:
        record.append({"output": output, **options, "threads": torch.get_num_threads()})

    monkeypatch.setattr(repvgg.demo, "run_demo", run_demo)
    return record


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run_demo(output: Path, **options: Any) -> None:
        raise error

    monkeypatch.setattr(repvgg.demo, "run_demo", run_demo)


def test_the_demo_has_defaults(calls: list[dict[str, Any]]) -> None:
    assert main(["demo"]) == 0
    assert calls == [{"output": Path("repvgg-demo"), "epochs": 30, "seed": 0, "threads": 1}]


def test_the_options_reach_the_demo(calls: list[dict[str, Any]]) -> None:
    threads = torch.get_num_threads()
    words = "demo --output there --epochs 2 --seed 5 --threads 2"
    assert main(words.split()) == 0
    assert calls == [{"output": Path("there"), "epochs": 2, "seed": 5, "threads": 2}]
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    "words",
    ["dmeo", "demo --epochs 0", "demo --seed -1", "demo --threads none", "demo --speed 9"],
)
def test_wrong_usage_is_explained(
    words: str, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    assert "Error: " in capsys.readouterr().err
    assert calls == []


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--help"]) == 0
    printed = capsys.readouterr().out
    for option in ("--output", "--epochs", "--seed", "--threads"):
        assert option in printed


def test_an_error_of_the_demo_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(monkeypatch, ReparamError("cannot write there"))
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == "Error: cannot write there\n"


def test_an_interruption_has_exit_code_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    threads = torch.get_num_threads()
    assert main(["demo", "--threads", "2"]) == 130
    assert torch.get_num_threads() == threads
    assert "Interrupted." in capsys.readouterr().err


def test_a_missing_dependency_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "repvgg.cli")
    monkeypatch.setitem(sys.modules, "click", None)
    assert repvgg.__main__._run() == 1
    assert capsys.readouterr().err == (
        "Error: click is not installed; the command line needs it: pip install 'reparam[demo]'\n"
    )


def test_importing_the_networks_needs_none_of_the_demos_dependencies() -> None:
    program = """
import sys
for name in ("click", "matplotlib", "safetensors", "sklearn"):
    sys.modules[name] = None
import repvgg
print(len(repvgg.list_models()))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert result.stdout == "15\n"
