"""Short training runs on the digits, in this process and in others."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from repvgg.training.processes import Processes
from repvgg.training.recipes import DIGITS
from repvgg.training.run import Habits, train_run
from repvgg.training.starts import Run

SHORT = replace(DIGITS, epochs=2, warmup_epochs=1)
STEPS = 44


def train(folder: Path, *, habits: Habits | None = None, seed: int = 0, **values: Any) -> None:
    """Trains the small network in this process."""
    names = "weights", "expand", "expand_norms"
    start = {name: values.pop(name) for name in names if name in values}
    run = Run("small", "digits", replace(SHORT, **values), seed=seed, **start)
    train_run(folder, run, habits or Habits(save_every=7, log_every=5), Processes())


def command(*words: str, processes: int = 1) -> list[str]:
    """The words that run `python -m repvgg`, in several processes by torchrun."""
    several = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    return [sys.executable, "-m", *(several if processes > 1 else []), "repvgg", *words]


def start(*words: str, processes: int = 1) -> subprocess.Popen[str]:
    """Starts the command line in one thread per process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(*words, processes=processes),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Waits for a process, and returns what it printed."""
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed


def rows(folder: Path) -> list[dict[str, str]]:
    """The log of a run."""
    with (folder / "log.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def results(folder: Path) -> dict[str, bytes]:
    """The files of which an interruption must not change a bit."""
    return {
        name: (folder / name).read_bytes()
        for name in ("final.safetensors", "best.safetensors", "log.csv")
    }
