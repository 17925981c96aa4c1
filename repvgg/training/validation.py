"""Both forms of a network that trains, on the held-out images."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import reparam
from reparam import ReparamError
from reparam.expansion import ExpandedLayer
from repvgg.data import Samples, load_batches
from repvgg.models import Backbone
from repvgg.training.evaluation import Accuracy, evaluate
from repvgg.training.loop import TrainingState
from repvgg.training.processes import Processes
from repvgg.training.sampling import HeldOutBatches

FACTOR = 16
"""How many times the rounding of the branches, and one rounding more, the fused form may have."""

_COMPARED = 8
"""How many held-out images the forms are compared on."""


class Validation:
    """The networks that are evaluated: the one that trains, and its fused form.

    The network is fused once. Then its fused form is brought up to date by `reparam.refresh`.

    Args:
        state: What is trained.
        held_out: The images.
        fused: Whether the fused form is evaluated as well.
        workers: Number of further processes that read samples ahead; 0 for none.

    Raises:
        ReparamError: If the network cannot be fused.
    """

    def __init__(
        self, state: TrainingState, held_out: Samples, *, fused: bool, workers: int
    ) -> None:
        self.state = state
        self.held_out = held_out
        self.workers = workers
        self._validates_fused = fused
        self._fused = _fuse(state.evaluated) if fused else None

    def fused(self) -> Backbone:
        """The fused form of the network as it is now; it is made if there is none yet.

        Raises:
            ReparamError: If the network cannot be fused any more as it was.
        """
        if self._fused is None:
            self._fused = _fuse(self.state.evaluated)
        return reparam.refresh(self._fused, self.state.evaluated)

    def evaluate(self) -> tuple[Accuracy, ...]:
        """Evaluates the network and, if that is wanted, its fused form, in all processes.

        Returns:
            The accuracy of the branches, and that of the fused form.

        Raises:
            ReparamError: If the fused form differs from the branches by more than rounding.
        """
        processes, network = self.state.processes, self.state.evaluated
        # Each process has moved the batch norms' statistics by its own share of the last batch.
        processes.send_from_first(network)
        forms = [network.eval()]
        if self._validates_fused:
            forms.append(self.fused())
            self._compare(*forms)
        evaluation = evaluate(
            forms,
            self.held_out,
            batch_size=max(1, self.state.recipe.batch_size // processes.count),
            processes=processes,
            workers=self.workers,
        )
        return evaluation.accuracies

    def _compare(self, network: nn.Module, fused: nn.Module) -> None:
        """Compares both forms with the network in float64, on the same images in all processes."""
        count = min(_COMPARED, len(self.held_out))
        batches = HeldOutBatches(count, count, processes=Processes())
        for images, _ in load_batches(self.held_out, batches, workers=0):
            verification = reparam.verify(network, fused, images.to(self.state.processes.device))
            own, error = verification.original[0], verification.fused[0]
            # So that a number that is none is an error, too.
            if not error <= FACTOR * (own + torch.finfo(images.dtype).eps):
                raise ReparamError(
                    f"after step {self.state.step:,} the fused form differs from the branches in "
                    f"float64 by {error:.1e} of the largest output, and rounding explains "
                    f"{own:.1e}; please report it, and go on with --no-validate-fused"
                )


def _fuse(network: Backbone) -> Backbone:
    # Not verified: it is compared with the network whenever it is evaluated.
    fused: Any = reparam.fuse(network.eval(), verify=False)
    left = [path for path, layer in fused.named_modules() if isinstance(layer, ExpandedLayer)]
    if left:
        raise ReparamError(
            f"the branches of {left[0]} do not become one convolution again: {fused.reparam_report}"
        )
    result: Backbone = fused
    return result
