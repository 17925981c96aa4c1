"""A run in its folder: interruptions change nothing, and what is saved is never lost."""

from __future__ import annotations

import errno
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import repvgg.training.loop
from reparam import ReparamError
from repvgg.cli.accuracy import evaluate_weights
from repvgg.training.networks import build_network, network_of
from repvgg.training.processes import Processes
from repvgg.training.run import Habits
from tests.repvgg.training.training_runs import STEPS, finish, results, rows, start, train


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without an interruption, with everything that has a state."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    train(folder, average_decay=0.9)
    return folder


class Killed(BaseException):
    """Stands for the end of the process."""


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ends the next run in the middle of a step, counted from where it begins."""
    real, calls = repvgg.training.loop.training_loss, []

    def loss(*args: Any, **options: Any) -> torch.Tensor:
        calls.append(args)
        if len(calls) > step:
            raise Killed
        return real(*args, **options)

    monkeypatch.setattr(repvgg.training.loop, "training_loss", loss)


def test_a_run_is_the_same_after_ten_interruptions(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = random.Random(0)
    for _ in range(10):
        with monkeypatch.context() as patch:
            interrupt_at(patch, moments.randrange(0, 9))
            with pytest.raises(Killed):
                train(tmp_path, average_decay=0.9)
    train(tmp_path, average_decay=0.9)
    assert results(tmp_path) == results(whole)


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_run_is_the_same_after_interruptions_of_its_writing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    real = getattr(os, function)
    for call in range(1, 12, 2):
        calls: list[Any] = []

        def interrupted(*args: Any, calls: list[Any] = calls, call: int = call) -> Any:
            calls.append(args)
            if len(calls) == call:
                raise Killed
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, function, interrupted)
            try:
                train(tmp_path, average_decay=0.9)
            except Killed:
                continue
    train(tmp_path, average_decay=0.9)
    assert results(tmp_path) == results(whole)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.corpus
def test_a_run_is_the_same_after_its_process_was_killed(tmp_path: Path) -> None:
    words = "train --epochs 2 --save-every 3 --log-every 4 --output".split()
    finish(start(*words, str(tmp_path / "whole")))
    moments = random.Random(0)
    killed = 0
    for _ in range(3):
        process = start(*words, str(tmp_path / "killed"))
        while process.poll() is None and not (tmp_path / "killed" / "state.pt").exists():
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.2))
        killed += process.poll() is None
        process.kill()
        process.communicate()
    finish(start(*words, str(tmp_path / "killed")))
    assert killed
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


def test_the_log_has_a_row_per_interval_and_the_accuracy_of_each_epoch(whole: Path) -> None:
    log = rows(whole)
    steps = [int(row["step"]) for row in log]
    assert steps == sorted({*range(5, STEPS, 5), *range(7, STEPS, 7), STEPS // 2, STEPS})
    evaluated = {int(row["step"]): float(row["top1"]) for row in log if row["top1"]}
    assert list(evaluated) == [STEPS // 2, STEPS]
    for row in log:
        assert (row["fused_top1"], row["fused_top5"]) == (row["top1"], row["top5"])
    assert float(log[-1]["loss"]) < float(log[0]["loss"])


def test_the_weights_are_those_that_were_evaluated(whole: Path) -> None:
    evaluation = evaluate_weights(
        "small",
        whole / "final.safetensors",
        "digits",
        size=8,
        batch_size=100,
        workers=0,
        processes=Processes(),
    )
    trained, fused = evaluation.accuracies
    assert trained == fused
    assert evaluation.agreements == (360, 360)
    assert trained.top1 / trained.images == float(rows(whole)[-1]["top1"])


def test_workers_and_the_rhythm_of_saving_change_nothing(whole: Path, tmp_path: Path) -> None:
    train(tmp_path, habits=Habits(save_every=1000, log_every=11, workers=1), average_decay=0.9)
    final = "final.safetensors"
    assert (tmp_path / final).read_bytes() == (whole / final).read_bytes()


def test_without_the_fused_form_the_weights_are_the_same(whole: Path, tmp_path: Path) -> None:
    habits = Habits(save_every=7, log_every=5, validate_fused=False)
    train(tmp_path, habits=habits, average_decay=0.9)
    final = "final.safetensors"
    assert (tmp_path / final).read_bytes() == (whole / final).read_bytes()
    assert not any(row["fused_top1"] for row in rows(tmp_path))


def test_a_finished_run_is_left_alone(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = results(whole)
    train(whole, average_decay=0.9)
    assert "This run is finished and nothing was changed" in capsys.readouterr().out
    assert results(whole) == before


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"batch_size": 32}, "batch_size was 64 and is 32"),
        ({"average_decay": 0.0}, "average_decay was 0.9 and is 0.0"),
    ],
)
def test_another_run_does_not_go_on(whole: Path, options: dict[str, Any], difference: str) -> None:
    before = results(whole)
    with pytest.raises(ReparamError, match=f"holds a run with other options: .*{difference}"):
        train(whole, **{"average_decay": 0.9, **options})
    assert results(whole) == before


def test_a_restart_discards_the_run(tmp_path: Path) -> None:
    train(tmp_path, epochs=1, warmup_epochs=0)
    train(tmp_path, epochs=1, warmup_epochs=0, seed=1, habits=Habits(restart=True))
    assert len(rows(tmp_path)) == 1


@pytest.mark.parametrize("size", [0, 1000])
def test_a_truncated_state_is_an_error(tmp_path: Path, size: int) -> None:
    train(tmp_path, epochs=1, warmup_epochs=0)
    state = tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:size])
    before = results(tmp_path)
    with pytest.raises(ReparamError, match=r"cannot read .*state\.pt, which is damaged"):
        train(tmp_path, epochs=1, warmup_epochs=0)
    assert results(tmp_path) == before


def test_a_foreign_state_is_an_error(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "state.pt")
    with pytest.raises(ReparamError, match="is not a training state of this version"):
        train(tmp_path)


def test_weights_without_a_state_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").write_bytes(b"precious")
    with pytest.raises(ReparamError, match=r"best\.safetensors is there without the state\.pt"):
        train(tmp_path)
    assert (tmp_path / "best.safetensors").read_bytes() == b"precious"


def test_a_full_disk_leaves_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    real, calls = os.fsync, []

    def full(file: int) -> None:
        calls.append(file)
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ReparamError, match="No space left on device; free some space"):
            train(tmp_path, average_decay=0.9)
    train(tmp_path, average_decay=0.9)
    assert results(tmp_path) == results(whole)


def test_a_loss_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReparamError, match=r"the loss became (nan|inf).* smaller learning rate"):
        train(tmp_path, learning_rate=1e18)


def test_weights_of_another_task_get_a_fresh_classifier(tmp_path: Path, whole: Path) -> None:
    other = build_network("small", num_classes=3, in_chans=1, seed=5)
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(other.state_dict(), path)
    train(tmp_path / "run", weights=path, epochs=1, warmup_epochs=0, learning_rate=1e-9)
    tuned = network_of("small", tmp_path / "run" / "final.safetensors")
    assert tuned.num_classes == 10
    name = "stage1.0.rbr_dense.conv.weight"
    torch.testing.assert_close(tuned.get_parameter(name), other.get_parameter(name))
    assert not torch.equal(
        network_of("small", whole / "final.safetensors").get_parameter(name),
        tuned.get_parameter(name),
    )


def test_fused_weights_cannot_be_trained(tmp_path: Path, whole: Path) -> None:
    fused = tmp_path / "fused.safetensors"
    repvgg.save_checkpoint(
        network_of("small", whole / "final.safetensors"), fused, layout="official_fused"
    )
    with pytest.raises(ReparamError, match="is fused, and training needs the branches"):
        train(tmp_path / "run", weights=fused)


@pytest.fixture
def fused(tmp_path: Path, whole: Path) -> Path:
    """The weights of the run, fused, as somebody deployed them."""
    path = tmp_path / "fused.safetensors"
    network = network_of("small", whole / "final.safetensors")
    repvgg.save_checkpoint(network, path, layout="timm_fused")
    return path


@pytest.mark.parametrize(
    "options",
    [{}, {"expand_norms": False, "custom_l2": True, "learning_rate": 0.01}],
    ids=["norms", "plain"],
)
def test_expanded_weights_are_deployed_under_their_names_whatever_interrupts_them(
    fused: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    values = {"weights": fused, "expand": "rep_vgg", "epochs": 1, "warmup_epochs": 0, **options}
    train(tmp_path / "whole", **values)
    for step in (3, 9):
        with monkeypatch.context() as patch:
            interrupt_at(patch, step)
            with pytest.raises(Killed):
                train(tmp_path / "killed", **values)
    train(tmp_path / "killed", **values)
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    before, after = (
        safetensors.torch.load_file(path)
        for path in (fused, tmp_path / "whole" / "final.safetensors")
    )
    assert {n: t.shape for n, t in after.items()} == {n: t.shape for n, t in before.items()}
    assert not any(torch.equal(after[name], before[name]) for name in before)
    (row,) = [row for row in rows(tmp_path / "whole") if row["top1"]]
    assert row["fused_top1"] == row["top1"]
    with pytest.raises(ReparamError, match="expand was 'rep_vgg' and is 'acnet'"):
        train(tmp_path / "whole", **{**values, "expand": "acnet"})


def test_the_decay_of_kernels_changes_the_weights_and_survives_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[str, Any] = {"epochs": 1, "warmup_epochs": 0}
    with monkeypatch.context() as patch:
        interrupt_at(patch, 9)
        with pytest.raises(Killed):
            train(tmp_path / "killed", custom_l2=True, **values)
    train(tmp_path / "killed", custom_l2=True, **values)
    train(tmp_path / "whole", custom_l2=True, **values)
    train(tmp_path / "without", **values)
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    assert results(tmp_path / "whole") != results(tmp_path / "without")


def test_a_foreign_log_is_not_overwritten(tmp_path: Path, whole: Path) -> None:
    (tmp_path / "state.pt").write_bytes((whole / "state.pt").read_bytes())
    train_again = {"average_decay": 0.9, "epochs": 2}
    (tmp_path / "log.csv").write_text("a,b\nprecious,1\n")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    state["training"]["step"] = 7
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(ReparamError, match=r"log\.csv is not the log of a run"):
        train(tmp_path, **train_again)
    assert "precious" in (tmp_path / "log.csv").read_text()
