"""The program as a whole: exit codes, errors, terminals, pipes and interruptions."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

import reparam
import reparam.__main__
from reparam.cli import _commands

ROOT = Path(__file__).resolve().parents[2]
SMALL = "tests.cli.networks:small"
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")},
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
}
WITH_TORCHVISION = "import tests.conftest, runpy; runpy.run_module('reparam', run_name='__main__')"
"""`python -m reparam`, where torchvision needs what tests/conftest.py does."""


def program(words: str, *, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "reparam", *words.split()],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_network_of_a_library_is_planned_without_colour_in_a_pipe(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITH_TORCHVISION, "plan", "timm/repvgg_a0"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith("ByobNet: 144 operators become 22, in 22 places; refused: 1\n")
    assert "conv 3x3, 3 -> 48" in result.stdout
    assert "\x1b" not in result.stdout + result.stderr
    assert result.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_function_in_the_current_folder_is_found_and_the_shell_gets_the_code(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.py").write_text("from torch import nn\nmake = lambda: nn.Linear(2, 2)\n")
    result = program("plan mine:make --require-fused", folder=tmp_path)
    assert result.returncode == 3, result.stderr
    assert result.stdout == "Linear: nothing is fused; refused: 0\n"


def in_a_terminal(words: str, environment: dict[str, str]) -> str:
    """What a terminal shows, stdout and stderr alike."""
    main, side = pty.openpty()
    command = [sys.executable, "-m", "reparam", *words.split()]
    process = subprocess.Popen(command, env=environment, stdout=side, stderr=side, cwd=ROOT)
    os.close(side)
    shown = b""
    while True:
        try:
            read = os.read(main, 65536)
        except OSError:  # the other end is closed
            break
        if not read:
            break
        shown += read
    os.close(main)
    assert process.wait() == 0, shown
    return shown.decode()


def test_a_terminal_gets_colour_and_progress_unless_it_wants_none() -> None:
    terminal = {**ENVIRONMENT, "TERM": "xterm-256color", "COLUMNS": "100"}
    shown = in_a_terminal(f"plan {SMALL}", terminal)
    assert "\x1b[1m" in shown  # bold titles
    assert "Planning" in shown
    colours = re.compile(r"\x1b\[[\d;]*3[0-8]")
    assert colours.search(shown)
    assert not colours.search(in_a_terminal(f"plan {SMALL}", {**terminal, "NO_COLOR": "1"}))


def test_an_interruption_has_exit_code_130(tmp_path: Path) -> None:
    words = "fuse tests.cli.networks:sleeping -o a.pt2 --input 1,3,8,8"
    process = subprocess.Popen(
        [sys.executable, "-m", "reparam", *words.split()],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "asleep\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err.strip()) == (130, "", "Interrupted.")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    result = subprocess.run(
        f"{sys.executable} -m reparam rules --json | head -c 10",
        shell=True,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (len(result.stdout), result.stderr) == (10, "")


def test_the_installed_command_is_this_program() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"reparam": "reparam.__main__:run"}
    assert callable(reparam.__main__.run)


def test_help_and_version() -> None:
    runner = CliRunner()
    result = runner.invoke(_commands, ["--version"])
    assert (result.exit_code, result.output) == (0, f"reparam, version {reparam.__version__}\n")
    for command in ("plan", "fuse", "verify", "bench", "rules"):
        result = runner.invoke(_commands, [command, "--help"], prog_name="reparam")
        assert result.exit_code == 0
        assert result.output.startswith(f"Usage: reparam {command} ")


@pytest.mark.parametrize(
    "words",
    [
        "plann timm/repvgg_a0",
        "plan",
        "plan repvgg_a0",
        "plan unknown/repvgg_a0",
        f"plan {SMALL} --input 1,3,x",
        f"plan {SMALL} --input 1,-3",
        f"plan {SMALL} --input 1,3:float3",
        f"plan {SMALL} --input ,",
        f"plan {SMALL} --arg width",
        f"fuse {SMALL} -o fused.pkl",
        f"fuse {SMALL} -o fused",
        f"verify {SMALL} --bound -1",
        f"bench {SMALL} --rounds 1",
        "rules timm/repvgg_a0",
    ],
)
def test_wrong_usage_has_exit_code_2(run, words: str) -> None:
    result = run(words, code=2)
    assert result.out == ""
    assert "Error: " in result.err


def test_an_error_of_the_models_code_is_one_line_with_a_traceback_on_request(run) -> None:
    short = run("plan tests.cli.networks:failing", code=1)
    assert short.err == "Error: KeyError: 'two\\nlines' (--debug shows where)\n"
    long = run("plan tests.cli.networks:failing --debug", code=1)
    assert "in failing" in long.err
    assert long.err.endswith("(--debug shows where)\n")


def test_an_interruption_of_the_models_code(run) -> None:
    assert run("plan tests.cli.networks:interrupted", code=130).err.endswith("Interrupted.\n")


def test_what_the_models_code_prints_stays_out_of_the_result(run) -> None:
    result = run("plan tests.cli.networks:chatty --json")
    assert result.values["command"] == "plan"
    assert result.err == "building\n"


def test_a_missing_dependency_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "reparam.cli")
    monkeypatch.setitem(sys.modules, "click", None)
    assert reparam.__main__.run() == 1
    assert capsys.readouterr().err == (
        "Error: click is not installed; the command line needs it: pip install 'reparam[cli]'\n"
    )


def test_importing_the_library_needs_nothing_of_the_command_line(tmp_path: Path) -> None:
    code = "import sys; sys.modules['click'] = sys.modules['safetensors'] = None; import reparam"
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT, cwd=tmp_path)
