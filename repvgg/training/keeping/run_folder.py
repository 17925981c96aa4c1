"""What is kept of a training run: the state to go on from, weights, and the log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reparam import ReparamError
from repvgg.training.keeping.snapshots import read_snapshot, write_snapshot
from repvgg.training.loop import TrainingState


class RunFolder:
    """The files of one run.

    Args:
        folder: Where they are.
        identity: What has to be the same for the run to go on, by the names of the options.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity = dict(identity)
        self.state = folder / "state.pt"
        self.best = folder / "best.safetensors"
        self.final = folder / "final.safetensors"
        self.log = folder / "log.csv"

    def restore(self, state: TrainingState) -> int | None:
        """Takes over the saved state, if there is one.

        Returns:
            The best number of correct predictions until then; `None` without a saved state.

        Raises:
            ReparamError: If the state is damaged or belongs to a run with other options.
        """
        saved = read_snapshot(self.state)
        if saved is None:
            return None
        differences = [
            f"{name} was {saved['run'].get(name)!r} and is {value!r}"
            for name, value in self.identity.items()
            if saved["run"].get(name) != value
        ]
        if differences:
            raise ReparamError(
                f"{self.folder} holds a run with other options: {'; '.join(differences)}. "
                "Go on with the same options, choose another --output, or --restart"
            )
        state.load_state_dict(saved["training"])
        best: int = saved["best"]
        return best

    def start(self, state: TrainingState, *, restart: bool) -> None:
        """Begins a new run.

        Args:
            state: The state before the first step.
            restart: Whether to discard what an earlier run left.

        Raises:
            ReparamError: If there is something of another run, or the folder is not writable.
        """
        earlier = [path for path in (self.best, self.final) if path.exists()]
        if earlier and not restart:
            raise ReparamError(
                f"{earlier[0]} is there without the {self.state.name} of its run; "
                "choose another --output, or --restart to discard it"
            )
        # First of all files, so that a run that is killed at once is known to be this one.
        self.save(state, best=-1)
        for path in (self.best, self.final, self.log):
            path.unlink(missing_ok=True)

    def save(self, state: TrainingState, *, best: int) -> None:
        """Saves the state to go on from.

        Args:
            state: The state.
            best: The best number of correct predictions until now.

        Raises:
            ReparamError: If the disk is full; the earlier state is kept then.
        """
        contents = {"run": self.identity, "best": best, "training": state.state_dict()}
        write_snapshot(self.state, contents)
