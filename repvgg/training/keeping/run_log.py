"""The course of a training as a table, and for TensorBoard."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from reparam import ReparamError
from reparam.deployment import write_files


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        step: How many steps had been taken.
        epoch: How many epochs of them were complete.
        learning_rate: That of the last step.
        loss: Its mean since the row before.
        top1: Accuracy on the held-out images, at the end of an epoch.
        top5: The same within five guesses.
        fused_top1: That of the fused form, if it is validated as well.
        fused_top5: The same within five guesses.
    """

    step: int
    epoch: int
    learning_rate: float
    loss: float
    top1: float | None = None
    top5: float | None = None
    fused_top1: float | None = None
    fused_top5: float | None = None


class RunLog:
    """Appends rows to a CSV file, and to TensorBoard's files beside it if wanted.

    Args:
        path: The CSV file. Rows later than `step` are removed: they are about to come again.
        step: Where training begins.
        tensorboard: Whether to write for TensorBoard too, into a folder `tensorboard`.

    Raises:
        ReparamError: If the file cannot be written, or TensorBoard is wanted and missing.
    """

    def __init__(self, path: Path, *, step: int, tensorboard: bool = False) -> None:
        self.path = path
        self._writer = _tensorboard(path.parent / "tensorboard", step) if tensorboard else None
        rows = [",".join(field.name for field in fields(Row)), *_rows_until(path, step)]
        write_files(path.parent, {path.name: "".join(f"{row}\n" for row in rows).encode()})

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, row: Row) -> None:
        """Appends a row.

        Raises:
            ReparamError: If the disk is full.
        """
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(asdict(row).values())
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line.getvalue())
        except OSError as error:
            raise ReparamError(f"cannot write {self.path}: {error.strerror or error}") from error
        if self._writer is not None:
            for name in ("learning_rate", "loss", "top1", "top5", "fused_top1", "fused_top5"):
                if (value := getattr(row, name)) is not None:
                    self._writer.add_scalar(name, value, row.step)


def _rows_until(path: Path, step: int) -> list[str]:
    """Returns the rows that were written completely, up to a step."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    complete = (line.rstrip("\n") for line in lines[1:] if line.endswith("\n"))
    try:
        return [line for line in complete if int(line.partition(",")[0]) <= step]
    except ValueError as error:
        raise ReparamError(
            f"{path} is not the log of a run; remove it, or choose another folder"
        ) from error


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ReparamError(
            f"--tensorboard needs the package tensorboard ({error}): pip install 'reparam[train]'"
        ) from error
    return SummaryWriter(folder, purge_step=step + 1)
