"""Checkpoint files give their weights, or one clear error."""

from __future__ import annotations

import random
from argparse import Namespace
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from reparam import ReparamError
from repvgg import read_state_dict

STATE = {"stage0.weight": torch.arange(6.0).reshape(2, 3), "linear.bias": torch.ones(4)}
AVERAGED = {name: tensor + 1 for name, tensor in STATE.items()}


def saved(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    return path


def assert_read(path: Path, expected: dict[str, Tensor], **arguments: Any) -> None:
    state = read_state_dict(path, **arguments)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.pth.tar", "a.bin"])
def test_a_file_of_torch_is_read_whatever_its_name(tmp_path: Path, name: str) -> None:
    torch.save(STATE, tmp_path / name)
    assert_read(tmp_path / name, STATE)


def test_a_file_of_safetensors_is_read(tmp_path: Path) -> None:
    safetensors.torch.save_file(STATE, tmp_path / "a.safetensors")
    assert_read(tmp_path / "a.safetensors", STATE)


def test_a_file_as_old_versions_of_torch_wrote_it_is_read(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert_read(tmp_path / "a.pth", STATE)


@pytest.mark.parametrize("entry", ["model", "state_dict", "model_state"])
def test_weights_are_found_in_the_usual_places(tmp_path: Path, entry: str) -> None:
    content = {"epoch": 3, "optimizer": {"lr": 0.1}, "model_ema": AVERAGED, entry: STATE}
    assert_read(saved(tmp_path, content), STATE)


@pytest.mark.parametrize("entry", ["model_ema", "state_dict_ema", "model"])
def test_other_weights_are_read_if_they_are_named(tmp_path: Path, entry: str) -> None:
    content = {"state_dict": STATE, entry: AVERAGED}
    assert_read(saved(tmp_path, content), AVERAGED, entry=entry)


def test_averaged_weights_are_never_taken_unasked(tmp_path: Path) -> None:
    path = saved(tmp_path, {"epoch": 3, "model_ema": AVERAGED})
    with pytest.raises(ReparamError, match="has 'epoch', 'model_ema'; choose with entry='model_e"):
        read_state_dict(path)


def test_a_file_of_timms_training_script_is_read(tmp_path: Path) -> None:
    content = {"arch": "a0", "state_dict": STATE, "args": Namespace(lr=0.1), "metric": 1.5}
    assert_read(saved(tmp_path, content), STATE)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."]
)
def test_prefixes_are_taken_off(tmp_path: Path, prefix: str) -> None:
    content = {prefix + name: tensor for name, tensor in STATE.items()}
    assert_read(saved(tmp_path, {"model": content}), STATE)


def test_a_prefix_of_some_names_only_is_none(tmp_path: Path) -> None:
    state = {"module.weight": torch.ones(1), "linear.bias": torch.ones(1)}
    assert_read(saved(tmp_path, state), state)


def test_the_weights_of_an_averaged_model_are_read(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    averaged = torch.optim.swa_utils.AveragedModel(model)
    assert_read(
        saved(tmp_path, {"model_ema": averaged.state_dict()}), model.state_dict(), entry="model_ema"
    )


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def without_end(data: bytes) -> bytes:
    return data[:-10]


def noise(data: bytes) -> bytes:
    return random.Random(0).randbytes(len(data))


def text(data: bytes) -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 12\n"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", [truncate, without_end, noise, text])
def test_a_damaged_file_is_refused(
    tmp_path: Path, damage: Callable[[bytes], bytes], suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".pth":
        torch.save(STATE, path)
    else:
        safetensors.torch.save_file(STATE, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ReparamError, match=f"{path} is damaged, or no "):
        read_state_dict(path)


def test_every_damage_of_an_old_file_is_refused_or_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    data, generator = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(data)
        damaged[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            read_state_dict(path)
        except ReparamError:
            refused += 1
    assert refused > 50


def test_a_file_with_foreign_objects_is_refused_and_nothing_of_it_is_run(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": STATE, "rate": Fraction(1, 10)})
    with pytest.raises(ReparamError, match=r"holds a fractions\.Fraction besides .*weights_only"):
        read_state_dict(path)


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": STATE, "extra": Attack(tmp_path / "attacked")})
    with pytest.raises(ReparamError, match="no such code is run"):
        read_state_dict(path)
    assert not (tmp_path / "attacked").exists()


def test_a_missing_file_a_folder_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    for name, message in {
        "missing.pth": "there is no file",
        ".": "is a folder",
        "empty.pth": "is empty",
    }.items():
        with pytest.raises(ReparamError, match=message):
            read_state_dict(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(3), "holds a Tensor instead of weights by name"),
        ([STATE], "holds a list instead"),
        ({}, "no weights by name in a usual place; it has nothing"),
        ({"model": {}}, "no weights by name in a usual place; it has 'model'"),
        ({"model": {"a": 1}}, "no weights by name in a usual place"),
        ({"net": STATE}, "it has 'net'; choose with entry='net'"),
        ({str(i): i for i in range(9)}, "it has '0', '1', '2', '3', '4', '5', …$"),
    ],
)
def test_a_file_without_weights_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ReparamError, match=message):
        read_state_dict(saved(tmp_path, content))


@pytest.mark.parametrize(
    ("entry", "message"),
    [("ema", "has no entry 'ema'; it has 'model', 'epoch'"), ("epoch", "no weights by name as 'e")],
)
def test_a_wrong_entry_is_refused(tmp_path: Path, entry: str, message: str) -> None:
    path = saved(tmp_path, {"model": STATE, "epoch": 3})
    with pytest.raises(ReparamError, match=message):
        read_state_dict(path, entry=entry)
