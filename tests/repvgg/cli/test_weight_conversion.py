"""Weights become other weights and programs, and the programs compute the same."""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor

import reparam.deployment.recording
import repvgg
from reparam import ReparamError
from repvgg.cli.weight_conversion import convert_weights
from repvgg.training.networks import build_network, network_of
from repvgg.weights.layouts import find_layout
from tests.support.randomise import randomise_batch_norm


@pytest.fixture
def trained(tmp_path: Path) -> tuple[repvgg.RepVGG, Path]:
    model = build_network("small", num_classes=7, in_chans=2).eval()
    randomise_batch_norm(model, 0)
    path = tmp_path / "trained.safetensors"
    repvgg.save_checkpoint(model, path)
    return model, path


def logits(model: torch.nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(images)
    return result


def images(batch: int = 5, side: int = 8) -> Tensor:
    return torch.rand(batch, 2, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("fused", [True, False])
def test_weights_keep_what_they_compute(
    trained: tuple[repvgg.RepVGG, Path], tmp_path: Path, suffix: str, fused: bool
) -> None:
    model, path = trained
    output = tmp_path / f"converted{suffix}"
    convert_weights("small", path, output, fused=fused)
    state = repvgg.read_state_dict(output)
    assert find_layout(state) == ("official_fused" if fused else "official")
    converted = network_of("small", output)
    torch.testing.assert_close(logits(converted, images()), logits(model, images()))


def test_the_names_can_be_chosen(trained: tuple[repvgg.RepVGG, Path], tmp_path: Path) -> None:
    convert_weights("small", trained[1], tmp_path / "timm.pth", fused=False, layout="timm")
    assert find_layout(repvgg.read_state_dict(tmp_path / "timm.pth")) == "timm"


@pytest.mark.parametrize("fused", [True, False])
def test_onnxruntime_computes_the_same(
    trained: tuple[repvgg.RepVGG, Path], tmp_path: Path, fused: bool
) -> None:
    model, path = trained
    convert_weights("small", path, tmp_path / "network.onnx", fused=fused)
    session = onnxruntime.InferenceSession(str(tmp_path / "network.onnx"))
    for batch in (1, 5):
        (outputs,) = session.run(None, {"images": images(batch).numpy()})
        expected = logits(model, images(batch))
        torch.testing.assert_close(torch.from_numpy(outputs), expected, rtol=1e-4, atol=1e-5)


def test_an_exported_program_computes_the_same(
    trained: tuple[repvgg.RepVGG, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, path = trained
    convert_weights("small", path, tmp_path / "network.pt2", size=16)
    assert "for any number of images of 16 by 16" in capsys.readouterr().out
    program = torch.export.load(tmp_path / "network.pt2")
    expected = logits(model, images(3, 16))
    torch.testing.assert_close(program.module()(images(3, 16)), expected, rtol=1e-4, atol=1e-5)


def test_a_program_that_differs_is_not_written(
    trained: tuple[repvgg.RepVGG, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reparam.deployment.recording, "_BOUND", -1.0)
    with pytest.raises(ReparamError, match="nothing was written"):
        convert_weights("small", trained[1], tmp_path / "network.pt2")
    assert not (tmp_path / "network.pt2").exists()


def test_fused_weights_have_no_way_back(
    trained: tuple[repvgg.RepVGG, Path], tmp_path: Path
) -> None:
    convert_weights("small", trained[1], tmp_path / "fused.pth")
    with pytest.raises(ReparamError, match="no way back"):
        convert_weights("small", tmp_path / "fused.pth", tmp_path / "back.pth", fused=False)
    convert_weights("small", tmp_path / "fused.pth", tmp_path / "again.safetensors")
    again = network_of("small", tmp_path / "again.safetensors")
    torch.testing.assert_close(logits(again, images()), logits(trained[0], images()))


@pytest.mark.parametrize(
    ("name", "layout", "message"),
    [
        ("network.xyz", None, "no format has the suffix"),
        ("network.onnx", "timm", "about files of weights"),
        ("network.pth", "tinn", "unknown layout 'tinn'"),
    ],
)
def test_what_cannot_be_written_is_said(
    trained: tuple[repvgg.RepVGG, Path], tmp_path: Path, name: str, layout: str, message: str
) -> None:
    with pytest.raises(ReparamError, match=message):
        convert_weights("small", trained[1], tmp_path / name, layout=layout)
    assert not (tmp_path / name).exists()


def test_a_missing_package_is_named(
    trained: tuple[repvgg.RepVGG, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        ReparamError, match=r"need the package onnx: pip install 'reparam\[interop\]'"
    ):
        convert_weights("small", trained[1], tmp_path / "network.onnx")


def test_weights_of_another_network_are_refused(
    trained: tuple[repvgg.RepVGG, Path], tmp_path: Path
) -> None:
    with pytest.raises(ReparamError, match=r"does not fit: .* missing"):
        convert_weights("repvgg_a0", trained[1], tmp_path / "fused.pth")
