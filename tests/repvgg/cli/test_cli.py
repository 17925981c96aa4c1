"""The command line: what it passes on and its exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import repvgg.__main__
import repvgg.cli.demo_run
from reparam import ReparamError
from repvgg.cli import main
from repvgg.training.recipes import DIGITS, Recipe


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replaces the demo by a record of its arguments and of the number of threads."""
    record: list[dict[str, Any]] = []

    def run_demo(output: Path, **options: Any) -> None:
        record.append({"output": output, **options, "threads": torch.get_num_threads()})

    monkeypatch.setattr(repvgg.cli.demo_run, "run_demo", run_demo)
    return record


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run_demo(output: Path, **options: Any) -> None:
        raise error

    monkeypatch.setattr(repvgg.cli.demo_run, "run_demo", run_demo)


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
    [
        "trian",
        "train --epochs many",
        "train --precision int8",
        "evaluate small",
        "convert small --weights w.pth",
        "convert small --weights w.pth -o x.onnx --form both",
        "bench small --rounds 1",
        "dmeo",
        "demo --epochs 0",
        "demo --seed -1",
        "demo --threads none",
        "demo --speed 9",
    ],
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


@pytest.mark.parametrize("command", ["train", "evaluate", "convert", "bench"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"Usage: python -m repvgg {command} ")
    options = re.findall(r"^  (?:-\w, )?--[\w-]+.*(?:\n {30,}\S.*)*", printed, flags=re.MULTILINE)
    assert len(options) > 4
    assert all(re.search(r"\s{2,}\w|\n {30,}\w", option) for option in options)


def test_every_value_of_a_recipe_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    printed = capsys.readouterr().out
    for field in fields(Recipe):
        assert f"--{field.name.replace('_', '-')}" in printed


def test_the_options_of_training_reach_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    module = import_module("repvgg.cli.train")  # the name itself is that of the command
    monkeypatch.setattr(module, "train_run", lambda *args: seen.extend(args))
    words = (
        "train --output there --seed 3 --epochs 3 --nesterov --precision bfloat16 --workers 2 "
        "--expand --no-expand-norms --weights fused.pth --no-validate-fused"
    )
    assert main(words.split()) == 0
    folder, run, habits, processes = seen
    assert (folder, run.model, run.data, run.seed) == (Path("there"), "small", "digits", 3)
    assert run.recipe == replace(
        DIGITS, epochs=3, warmup_epochs=2, nesterov=True, precision="bfloat16"
    )
    assert (run.expand, run.expand_norms, run.weights) == ("rep_vgg", False, Path("fused.pth"))
    assert (habits.workers, habits.validate_fused, processes.count) == (2, False, 1)


def test_a_network_is_trained_evaluated_converted_and_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(tmp_path / "run" / "final.safetensors")
    for words in (
        f"train --data digits --epochs 2 --output {tmp_path / 'run'}",
        f"evaluate small --weights {weights}",
        f"convert small --weights {weights} -o {tmp_path / 'small.onnx'}",
        "bench small --rounds 2 --batch-size 1",
    ):
        assert main(words.split()) == 0, words
    printed = "".join(capsys.readouterr())
    for line in (
        "small on 1,437 images of 10 classes, 360 held out",
        "epoch 2: loss ",
        "\n  fused: top-1 ",
        "the same prediction for 360 of 360 (100.00%)",
        "small.onnx: the network, fused, for any number of images of 8 by 8; run on some",
        "batch of 1: fused ",
    ):
        assert line in printed
    assert (tmp_path / "small.onnx").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --model repvgg_a00", "unknown model 'repvgg_a00'; did you mean repvgg_a0"),
        ("train --data nowhere", "there is no folder nowhere/train"),
        ("evaluate small --weights nothing.pth", "there is no file nothing.pth"),
        ("convert small --weights nothing.pth -o x.onnx", "there is no file nothing.pth"),
        ("bench smal", "unknown model 'smal'"),
    ],
)
def test_what_is_wrong_is_one_line(
    words: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Error: ")
    assert message in printed
    assert printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


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
