"""Weights are loaded exactly, and no code that a file brings is run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.cli.networks import small

SMALL = "tests.cli.networks:small"


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    model = small()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + (0.1 if "var" in name else -0.3))
    return model.state_dict()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
def test_weights_are_those_of_the_file(
    run, state: dict[str, torch.Tensor], tmp_path: Path, name: str
) -> None:
    save = safetensors.torch.save_file if name.endswith("safetensors") else torch.save
    save(state, tmp_path / name)
    result = run(f"fuse {SMALL} --weights {name} -o fused.safetensors")
    assert "Wrote fused.safetensors" in result.out
    fused = safetensors.torch.load_file(tmp_path / "fused.safetensors")
    variance = (state["1.running_var"] + 1e-5).sqrt()
    expected = state["0.weight"] * (state["1.weight"] / variance)[:, None, None, None]
    (found,) = (tensor for tensor in fused.values() if tensor.shape == expected.shape)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.bias": None}, "1 missing: 0.bias"),
        ({"extra": torch.zeros(1)}, "1 unexpected: extra"),
        ({"0.bias": torch.zeros(3)}, "0.bias has the shape (3,) instead of (8,)"),
    ],
)
def test_weights_must_fit(
    run, state: dict[str, torch.Tensor], tmp_path: Path, change: dict, message: str
) -> None:
    changed = {name: tensor for name, tensor in {**state, **change}.items() if tensor is not None}
    torch.save(changed, tmp_path / "w.pt")
    assert message in run(f"plan {SMALL} --weights w.pt", code=1).err


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


def test_a_pickle_with_code_is_refused_and_not_executed(run, tmp_path: Path) -> None:
    torch.save({"0.weight": torch.zeros(1), "attack": Attack()}, tmp_path / "evil.pt")
    error = run(f"plan {SMALL} --weights evil.pt", code=1).err
    assert "no such code is run" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["nothing.pt", "nothing.safetensors"])
def test_a_missing_file_is_named(run, name: str) -> None:
    error = run(f"plan {SMALL} --weights {name}", code=1).err
    assert error == f"Error: there is no file {name}\n"


def test_a_damaged_file_is_named(run, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"no weights")
    assert "damaged" in run(f"plan {SMALL} --weights w.safetensors", code=1).err


def test_a_program_takes_none(run, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pt")
    run(f"fuse {SMALL} --input 1,3,8,8 -o a.pt2")
    assert "has its weights already" in run("plan a.pt2 --weights w.pt", code=1).err
