"""The demo as a whole: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import reparam
import repvgg.cli.demo_run
from repvgg.cli.demo_run import DemoResult, check_float64, check_predictions, run_demo
from repvgg.data.digits import predict, split_digits
from repvgg.training.networks import small_repvgg
from tests.support.randomise import randomise_batch_norm

FILES = ["trained.safetensors", "fused.safetensors", "demo.png", "demo.svg"]


@dataclass(frozen=True)
class Run:
    """One run of the demo, with a little training."""

    result: DemoResult
    printed: str
    folder: Path


def demo(folder: Path) -> DemoResult:
    return run_demo(folder, epochs=1, seed=3, rounds=5)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("demo") / "output"
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("click.echo", lines.append)
        result = demo(folder)
    return Run(result, "\n".join(lines), folder)


def test_four_files_are_written(once: Run) -> None:
    assert once.result.files == [once.folder / name for name in FILES]
    assert sorted(path.name for path in once.folder.iterdir()) == sorted(FILES)


def test_the_weights_load_into_both_forms(once: Run) -> None:
    digits = split_digits(seed=3)
    trained = small_repvgg(seed=0).eval()
    fused = reparam.fuse(trained)
    trained.load_state_dict(safetensors.torch.load_file(once.folder / "trained.safetensors"))
    fused.load_state_dict(safetensors.torch.load_file(once.folder / "fused.safetensors"))

    predictions = predict(trained, digits.held_out_images)
    assert torch.equal(predict(fused, digits.held_out_images), predictions)
    assert int((predictions == digits.held_out_labels).sum()) == once.result.correct
    assert predictions.unique().numel() > 5  # a model that always reads the same would agree, too


def test_the_findings_are_printed(once: Run) -> None:
    result = once.result
    for line in (
        "Digits: 1,437 to train on, 360 held out (seed 3)",
        "RepVGG: 8 blocks, 167,018 parameters",
        "Fused: 149,258 parameters",
        f"In float64: largest difference {result.relative_error:.1e} of the largest output",
        f"Held-out digits: the same prediction for all 360, {result.correct} of 360 correct",
        f"Wrote {once.folder / 'trained.safetensors'}",
    ):
        assert line in once.printed
    assert str(reparam.plan(small_repvgg(seed=3).eval())) in once.printed
    for comparison in result.comparisons:
        assert f"{comparison.original}  " in once.printed
        assert f"{comparison.speedup:.2f}×" in once.printed


def test_both_batch_sizes_are_timed(once: Run) -> None:
    assert [(c.batch, c.rounds) for c in once.result.comparisons] == [(1, 5), (64, 5)]


def test_the_two_forms_agree_up_to_rounding(once: Run) -> None:
    assert once.result.relative_error < 1e-13


def test_only_latencies_differ_between_two_runs(
    once: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr("click.echo", lines.append)
    demo(tmp_path)
    for name in ("trained.safetensors", "fused.safetensors"):
        assert (tmp_path / name).read_bytes() == (once.folder / name).read_bytes()

    def without_latencies(printed: str, folder: Path) -> str:
        printed = re.sub(r"^ +\d+  .*×$", "", printed, flags=re.MULTILINE)
        return printed.replace(str(folder), "")

    again = without_latencies("\n".join(lines), tmp_path)
    assert again == without_latencies(once.printed, once.folder)


def randomised() -> repvgg.RepVGG:
    model = small_repvgg(seed=0).eval()
    randomise_batch_norm(model, 0, [split_digits(seed=0).train_images[:64]])
    return model


def test_a_wrong_fusion_is_found_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = randomised(), split_digits(seed=0).held_out_images
    assert 0 < check_float64(model, images) < 1e-12

    def nearly(exact: nn.Module, *args: Any) -> nn.Module:
        fused = deepcopy(exact)
        fused.get_parameter("linear.bias").data += 1e-9
        return fused

    monkeypatch.setattr(reparam, "fuse", nearly)
    with pytest.raises(reparam.ReparamError, match=r"differs .* by \d\.\de-\d+ in float64"):
        check_float64(model, images)


def test_an_output_that_is_not_a_number_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(exact: nn.Module) -> nn.Module:
        fused = deepcopy(exact)
        fused.get_parameter("linear.bias").data.fill_(float("nan"))
        return fused

    monkeypatch.setattr(reparam, "fuse", broken)
    with pytest.raises(reparam.ReparamError, match=r"differs .* by nan"):
        check_float64(randomised(), split_digits(seed=0).held_out_images)


def test_a_single_different_prediction_is_found() -> None:
    digits, model = split_digits(seed=0), randomised()
    fused = reparam.fuse(model)
    check_predictions(model, fused, digits)

    class OneWrong(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = fused(x).clone()
            logits[5] = -logits[5]
            return logits

    with pytest.raises(reparam.ReparamError, match="1 of 360 held-out digits differently"):
        check_predictions(model, OneWrong(), digits)


def test_a_folder_that_cannot_be_written_to_fails_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(
        repvgg.cli.demo_run, "train", lambda *args, **kwargs: pytest.fail("trained")
    )
    with pytest.raises(reparam.ReparamError, match="is a file"):
        demo(tmp_path / "file")


@pytest.mark.parametrize("name", ["train", "compare", "draw", "render"])
def test_an_interruption_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    if name != "train":
        monkeypatch.setattr(
            repvgg.cli.demo_run, "train", lambda model, *args, **kwargs: model.eval()
        )
    monkeypatch.setattr(repvgg.cli.demo_run, name, interrupt)
    with pytest.raises(KeyboardInterrupt):
        demo(tmp_path / "output")
    assert list(tmp_path.iterdir()) == []
