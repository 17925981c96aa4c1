"""Several processes train as one does."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

import repvgg.training.processes
from reparam import ReparamError
from repvgg.training.networks import small_repvgg
from repvgg.training.processes import Processes, join
from repvgg.weights import save_checkpoint
from tests.repvgg.training.training_runs import finish, results, rows, start

EXACT = 1e-5
"""Sums over two processes have another order; the losses are about 2."""


def test_two_processes_have_the_losses_of_one_with_frozen_batch_norms(tmp_path: Path) -> None:
    words = "train --epochs 1 --freeze-bn --custom-l2 --log-every 1 --output".split()
    finish(start(*words, str(tmp_path / "one")))
    finish(start(*words, str(tmp_path / "two"), processes=2))
    alone, shared = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(alone) == 22
    for first, second in zip(alone, shared, strict=True):
        assert float(second["loss"]) == pytest.approx(float(first["loss"]), rel=EXACT)
    assert alone[-1]["top5"] == shared[-1]["top5"]


@pytest.mark.corpus
def test_two_processes_train_with_statistics_of_their_own_and_go_on(tmp_path: Path) -> None:
    words = "train --epochs 2 --output".split()
    finish(start(*words, str(tmp_path / "run"), processes=2))
    assert float(rows(tmp_path / "run")[-1]["top1"]) > 0.5
    printed = finish(start(*words, str(tmp_path / "run"), processes=2))
    assert printed.count("This run is finished") == 1
    weights = str(tmp_path / "run" / "final.safetensors")
    printed = finish(start("evaluate", "small", "--weights", weights, processes=2))
    assert "the same prediction for 360 of 360" in printed


@pytest.mark.parametrize("options", ["", pytest.param("--custom-l2", marks=pytest.mark.corpus)])
def test_two_processes_go_on_from_the_middle_as_if_nothing_had_been(
    tmp_path: Path, options: str
) -> None:
    words = f"train --epochs 2 --save-every 3 --log-every 4 {options} --output".split()
    killed = start(*words, str(tmp_path / "killed"), processes=2)
    while killed.poll() is None and not (tmp_path / "killed" / "state.pt").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    killed.terminate()  # which ends both
    killed.communicate(timeout=300)
    assert killed.returncode
    printed = finish(start(*words, str(tmp_path / "killed"), processes=2))
    assert "Going on after step" in printed
    finish(start(*words, str(tmp_path / "whole"), processes=2))
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


@pytest.mark.corpus
@pytest.mark.parametrize("options", ["--custom-l2", "--expand acnet --learning-rate 0.01"])
def test_two_processes_train_what_is_new_and_go_on(tmp_path: Path, options: str) -> None:
    words = f"train --epochs 1 {options}".split()
    if "--expand" in words:
        fused = tmp_path / "fused.safetensors"
        save_checkpoint(small_repvgg(seed=0), fused, layout="official_fused")
        words += ["--weights", str(fused)]
    for _ in range(2):
        printed = finish(start(*words, "--output", str(tmp_path / "run"), processes=2))
    assert printed.count("This run is finished") == 1
    last = rows(tmp_path / "run")[-1]
    assert float(last["top1"]) > 0.1
    assert last["fused_top1"] == last["top1"]


def test_a_process_alone_needs_nothing() -> None:
    with join("cpu") as processes:
        assert processes == Processes()
        assert processes.first
        assert processes.agree(3)
        assert torch.equal(processes.sum(torch.ones(2)), torch.ones(2))


def test_a_missing_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repvgg.training.processes.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with (
        pytest.raises(ReparamError, match="has 1 GPUs that PyTorch can use, too few"),
        join("cuda"),
    ):
        raise AssertionError


@pytest.mark.corpus
def test_a_batch_that_cannot_be_shared_out_is_an_error(tmp_path: Path) -> None:
    words = ["train", "--batch-size", "63", "--output", str(tmp_path)]
    process = start(*words, processes=2)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode
    assert "a batch of 63 images cannot be shared out evenly to 2 processes" in printed
