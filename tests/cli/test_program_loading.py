"""Exported programs are read, and those that would run code are not."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reparam.cli.program_checks import is_size
from reparam.cli.program_loading import load_program
from reparam.errors import ReparamError
from tests.cli.networks import small


@pytest.fixture(scope="module")
def archive() -> bytes:
    torch.manual_seed(0)
    program = torch.export.export(
        small().eval(),
        (torch.randn(2, 3, 8, 8),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},),
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def rewritten(archive: bytes, change: Callable[[dict[str, bytes]], object]) -> bytes:
    """The archive with other entries."""
    with zipfile.ZipFile(io.BytesIO(archive)) as read:
        top = read.namelist()[0].partition("/")[0]
        entries = {name.partition("/")[2]: read.read(name) for name in read.namelist()}
    change(entries)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as write:
        for name, content in entries.items():
            write.writestr(f"{top}/{name}", content)
    return buffer.getvalue()


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ReparamError) as caught:
        load_program(path)
    return str(caught.value)


def test_a_program_of_any_size_is_read(archive: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pt2"
    path.write_bytes(archive)
    program = load_program(path)
    assert program.module()(torch.randn(5, 3, 8, 8)).shape == (5, 4, 6, 6)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    path.write_bytes(rewritten(archive, lambda entries: None))
    load_program(path)


def test_it_is_planned_on_what_it_was_recorded_with(run, archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_bytes(archive)
    assert run("plan a.pt2 --json").values["operators"] == {"before": 4, "after": 2}
    assert run("verify a.pt2 --json").values["equal"]
    assert run("bench a.pt2 --rounds 2 --json").values["inputs"] == [[2, 3, 8, 8]]
    run("fuse a.pt2 -o b.pt2")
    fused, original = load_program(tmp_path / "b.pt2"), load_program(tmp_path / "a.pt2")
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(fused.module()(x), original.module()(x))
    run("fuse a.pt2 -o b.onnx")
    run("fuse a.pt2 -o b.safetensors")
    assert "takes no --arg" in run("plan a.pt2 --arg a=1", code=1).err
    assert "leave --float64 out" in run("verify a.pt2 --float64", code=1).err


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive at all" * 100])
def test_no_archive(tmp_path: Path, content: bytes) -> None:
    assert "no program that torch.export.save wrote" in refusal(tmp_path / "a.pt2", content)


def test_an_error_is_one_line_without_the_log_of_pytorch(run, tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_bytes(b"nothing")
    error = run("plan a.pt2", code=1).err
    assert error.startswith("Error: a.pt2 is damaged")
    assert error.count("\n") == 1


def test_another_archive(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    assert "holds no program" in refusal(tmp_path / "a.pt2", content)


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


def pickled() -> bytes:
    buffer = io.BytesIO()
    torch.save(Attack(), buffer)
    return buffer.getvalue()


def configure(entries: dict[str, bytes], kind: str, payload: dict[str, Any]) -> None:
    name = f"data/{kind}/model_{kind}_config.json"
    config = json.loads(entries[name])
    if kind == "weights":
        next(iter(config["config"].values())).update(payload)
    else:
        config["config"]["attack"] = {"is_param": False, "tensor_meta": None, **payload}
    entries[name] = json.dumps(config).encode()
    entries[f"data/{kind}/{payload['path_name']}"] = pickled()


def pickled_weight(entries: dict[str, bytes]) -> None:
    configure(entries, "weights", {"path_name": "weight_0", "use_pickle": True})


def pickled_constant(entries: dict[str, bytes]) -> None:
    configure(entries, "constants", {"path_name": "opaque_obj_0", "use_pickle": False})


def library(entries: dict[str, bytes]) -> None:
    entries["data/aotinductor/model/model.so"] = b"code"


def size(entries: dict[str, bytes]) -> None:
    text = entries["models/model.json"].decode()
    start = text.index('"expr_str": "') + len('"expr_str": "')
    end = text.index('"', start)
    attack = "__import__('os').mkdir('executed')"
    entries["models/model.json"] = (text[:start] + attack + text[end:]).encode()


@pytest.mark.parametrize("attack", [pickled_weight, pickled_constant, library, size])
def test_code_in_an_archive_is_refused_and_not_executed(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: Callable[..., object]
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(tmp_path / "a.pt2", rewritten(archive, attack))
    assert "would run code of its own" in message
    assert not (tmp_path / "executed").exists()


def test_pickled_inputs_are_not_executed(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def attack(entries: dict[str, bytes]) -> None:
        entries["data/sample_inputs/model.pt"] = pickled()

    assert "cannot be read" in refusal(tmp_path / "a.pt2", rewritten(archive, attack))
    assert not (tmp_path / "executed").exists()


def test_names_that_clash_are_refused(archive: bytes, tmp_path: Path) -> None:
    def twice(entries: dict[str, bytes]) -> None:
        entries["Models/model.json"] = entries["models/model.json"]

    assert "names in it clash" in refusal(tmp_path / "a.pt2", rewritten(archive, twice))


@pytest.mark.parametrize(
    ("expression", "fits"),
    [
        ("Symbol('s31', positive=True, integer=True)", True),
        ("2*s0 + 1", True),
        ("FloorDiv(s0 - 1, 2)", True),
        ("Max(1, s0) < 4", True),
        ("__import__('os')", False),
        ("eval(chr(49))", False),
        ("Symbol('s0').func", False),
        ("sympify('1')", False),
        ("s0.__class__", False),
        ("[s0 for s0 in s1]", False),
        ("(lambda: s0)()", False),
        ("Symbol('open')", False),
        ("1 +", False),
        ("(" * 1000, False),
    ],
)
def test_sizes_are_arithmetic(expression: str, fits: bool) -> None:
    assert is_size(expression) == fits
