"""How the program starts: at once where nothing needs PyTorch; how it is stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import reparam
from tests.cli.conftest import Run


def started(
    words: str, folder: Path, *, torch: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the program in a process of its own, perhaps with something else in torch's place."""
    if torch is not None:
        (folder / "torch.py").write_text(torch, encoding="utf-8")
    here = Path(reparam.__file__).parents[1]
    path = os.pathsep.join([str(folder), str(here)])
    return subprocess.run(
        [sys.executable, "-m", "reparam", *words.split()],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("words", ["--version", "--help", "plan --help", "bench -h", "fuse --help"])
def test_what_it_is_and_how_it_is_used_needs_no_torch(words: str, tmp_path: Path) -> None:
    process = started(words, tmp_path, torch="raise ImportError('there is none')")
    assert process.returncode == 0, process.stderr
    assert "reparam" in process.stdout
    assert not process.stderr


def test_an_interruption_while_torch_is_imported_is_one_line(tmp_path: Path) -> None:
    process = started("rules", tmp_path, torch="raise KeyboardInterrupt")
    assert process.returncode == 130
    assert process.stderr.strip() == "Interrupted."


def test_only_public_names_are_offered() -> None:
    assert dir(reparam) == sorted([*reparam.__all__, "__version__"])
    with pytest.raises(AttributeError, match="no attribute 'fuze'"):
        reparam.fuze  # noqa: B018


NETS = """
from torch import nn

def small():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())

def broken():
    model = small()
    model[0].weight.data[0, 0, 0, 0] = float("nan")
    return model
"""


@pytest.fixture
def nets(tmp_path: Path) -> None:
    (tmp_path / "nets_of_start.py").write_text(NETS, encoding="utf-8")


@pytest.mark.usefixtures("nets")
def test_names_that_are_nearly_right(run: Run) -> None:
    assert "did you mean small?" in run("plan nets_of_start:smal", 1).err
    found = run("plan resnet18", 2).err
    assert "timm/resnet18" in found
    assert "torchvision/resnet18" in found
    assert "did you mean" not in run("plan nothing_like_it_at_all", 2).err


@pytest.mark.usefixtures("nets")
def test_what_is_kept_stays(run: Run) -> None:
    values = run("plan nets_of_start:small --keep 1 --json").values
    assert not values["fused"]
    assert "means no module" in run("plan nets_of_start:small --keep norm", 1).err


@pytest.mark.usefixtures("nets")
def test_every_file_is_told_of(run: Run, tmp_path: Path) -> None:
    assert (
        "Wrote plan.html: the plan as a page"
        in run("plan nets_of_start:small --html plan.html").out
    )
    told = run("fuse nets_of_start:small --html plan.html --json")
    assert "Wrote plan.html" in told.err
    assert told.values["output"] is None
    assert "Nothing was written; -o FILE" in told.err
    (tmp_path / "folder").mkdir()
    for option in ("-o", "--html"):
        assert (
            "is a folder; name a file in it"
            in run(f"fuse nets_of_start:small {option} folder", 2).err
        )


@pytest.mark.usefixtures("nets")
def test_more_threads_than_cores_are_wrong_usage(run: Run) -> None:
    assert "--threads" in run("bench nets_of_start:small --input 1,3,9,9 --threads 100000", 2).err


@pytest.mark.usefixtures("nets")
def test_outputs_that_are_no_numbers_are_said_to_be_so(run: Run) -> None:
    found = run("verify nets_of_start:broken --input 1x3x9x9", 3)
    assert "no numbers (NaN)" in found.err


def test_the_inputs_that_a_library_names_are_taken(run: Run) -> None:
    known = run("plan timm/test_byobnet --json").values["fused"]
    given = run("plan timm/test_byobnet --input 1,3,160,160 --json").values["fused"]
    assert [row["multiply_adds"] for row in known] == [row["multiply_adds"] for row in given]
