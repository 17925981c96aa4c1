"""Copies the package, plants one mistake in the copy, and runs the tests there."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.mutations.mistake import Mistake

ROOT = Path(__file__).resolve().parents[2]

TESTS = [
    "tests/test_tiny.py",
    "tests/refusals/test_refusals.py",
    "tests/algebra/test_laws.py",
    "tests/algebra/test_expressions.py",
    "tests/following/test_refreshing.py",
    "tests/following/test_live_models.py",
    "tests/following/test_memory.py",
    "tests/expansion",
    "tests/rules/test_rules.py",
    "tests/rules/test_reshapes.py",
    "tests/modules/test_copying.py",
    "tests/modules/test_undisturbed.py",
    "tests/modules/test_threads.py",
    "tests/capture/stand_ins",
    "tests/capture/reading",
    "tests/analysis",
    "tests/planning/test_writes_between.py",
    "tests/planning/test_any_size.py",
    "tests/planning/sums",
    "tests/planning/test_stopwatch.py",
    "tests/planning/test_joint_readers.py",
    "tests/planning/scales",
    "tests/planning/test_sizes_read.py",
    "tests/planning/folding",
    "tests/rewriting/test_fused_forward.py",
    "tests/rewriting/test_attributes_kept.py",
    "tests/rewriting/test_arguments_given_twice.py",
    "tests/rewriting/test_values_that_leave.py",
    "tests/rewriting/test_copied_metadata.py",
    "tests/rewriting/test_methods.py",
    "tests/rewriting/test_other_ways_in.py",
    "tests/rewriting/test_ways_hard_to_see.py",
    "tests/rewriting/test_repeats.py",
    "tests/verification",
    "tests/equalization",
    "tests/cases/test_assigned_borders.py",
    "tests/cases/test_made_tensors.py",
    "tests/cases/test_questions.py",
    "tests/cases/test_taken_for_granted.py",
    "tests/cases/test_sizes_of_an_example.py",
    "tests/cases/test_padding_that_crops.py",
    "tests/cases/test_constant_modules.py",
    "tests/cases/test_hostile_classes.py",
    "tests/cases/test_earlier_calls.py",
    "tests/random_networks/test_findings.py",
    "tests/cli/models/test_program_loading.py",
    "tests/uses/test_precision.py",
    "tests/uses/test_live.py",
    "tests/cases/test_writing.py",
    "tests/random_networks/test_random_networks.py",
]
"""The fast tests that have to notice, in the order in which they run: those of the room first."""


@dataclass(frozen=True)
class Outcome:
    """What the tests said of one mistake.

    Args:
        mistake: What was done wrong.
        file: Where.
        caught_by: The first test that failed; None if none did.
        seconds: How long that took.
    """

    mistake: str
    file: str
    caught_by: str | None
    seconds: float


@contextmanager
def planted(mistake: Mistake | None) -> Iterator[Path]:
    """A copy of the package and its tests, with the mistake."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        unwanted = shutil.ignore_patterns("__pycache__", "*.pyc")
        for name in ("reparam", "repvgg", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=unwanted)
        shutil.copy(ROOT / "pyproject.toml", copy)
        if mistake is not None:
            path = copy / "reparam" / mistake.file
            source = path.read_text(encoding="utf-8")
            path.write_text(mistake.applied(source), encoding="utf-8")
        yield copy


def first_failure(folder: Path, tests: Sequence[str]) -> str | None:
    """The first test that fails in a copy.

    Raises:
        RuntimeError: The tests could not be run.
    """
    # Of an installed package, pytest must not take the original.
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.setdefault("OMP_NUM_THREADS", "1")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *tests],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", done.stdout, re.MULTILINE)
    if done.returncode not in (1, 2) or failed is None:
        raise RuntimeError(f"pytest did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return failed[1]


def outcome(mistake: Mistake, tests: Sequence[str] = TESTS) -> Outcome:
    """Plants one mistake and runs the tests until the first one fails."""
    start, room = time.monotonic(), mistake.file.partition("/")[0]
    nearest = sorted(tests, key=lambda test: not f"{test}/".startswith(f"tests/{room}/"))
    with planted(mistake) as folder:
        caught = first_failure(folder, nearest)
    return Outcome(mistake.name, f"reparam/{mistake.file}", caught, time.monotonic() - start)
