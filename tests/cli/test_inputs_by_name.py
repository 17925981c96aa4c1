"""Inputs that a network takes by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from reparam.cli.models.input_shapes import make_inputs
from reparam.cli.words import InputShape, read_shape

NAMED = "tests.cli.networks:named"
SHAPES = "--input 5,8 --input values=5,6 --input mask=5,8:bool"


def test_shapes_with_a_name() -> None:
    shape = read_shape("mask=1,16:bool")
    assert shape == InputShape((1, 16), "bool", "mask")
    assert read_shape(str(shape)) == shape
    inputs = make_inputs([InputShape((1, 2)), shape], 0)
    assert [value.shape for value in inputs.args] == [(1, 2)]
    assert {name: value.dtype for name, value in inputs.kwargs.items()} == {"mask": torch.bool}


@pytest.mark.parametrize("wrong", ["=1,3", "a b=1,3", "a==1,3", "mask="])
def test_what_is_no_shape_with_a_name(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"no name|no shape"):
        read_shape(wrong)


def test_every_command_takes_them(run) -> None:
    assert "2 operators become 1" in run(f"plan {NAMED} {SHAPES}").out
    assert "equal within" in run(f"verify {NAMED} {SHAPES} --float64").out
    assert run(f"bench {NAMED} {SHAPES} --rounds 2 --json").values["inputs"] == [
        [5, 8],
        [5, 6],
        [5, 8],
    ]


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_programs_are_recorded_with_them(run, tmp_path: Path, suffix: str) -> None:
    values = run(f"fuse {NAMED} {SHAPES} -o fused.{suffix} --json").values
    assert values["difference"] < 1e-5
    if suffix == "pt2":
        assert "equal within" in run("verify fused.pt2").out  # it knows their names


def test_any_number_of_samples(run, tmp_path: Path) -> None:
    run(f"fuse {NAMED} {SHAPES} -o fused.pt2 --any-batch")
    program = torch.export.load(tmp_path / "fused.pt2").module()
    x, mask = torch.randn(3, 8), torch.ones(3, 8, dtype=torch.bool)
    result: Tensor = program(x, values=torch.randn(3, 6), mask=mask)
    assert result.shape == (3, 8)


def test_wrong_names(run) -> None:
    assert "'valus'" in run(f"plan {NAMED} --input 5,8 --input valus=5,6", code=1).err
    twice = run(f"plan {NAMED} --input 5,8 --input values=5,6 --input values=5,6", code=1)
    assert "given twice" in twice.err
