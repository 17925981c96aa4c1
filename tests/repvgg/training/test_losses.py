"""The loss of a network with auxiliary classifiers."""

from __future__ import annotations

import torch
from torch import nn

from repvgg.training.losses import training_loss


def test_auxiliary_losses_count_a_tenth() -> None:
    torch.manual_seed(0)
    logits = {name: torch.randn(4, 5) for name in ("main", "stage1_aux", "stage2_aux")}
    targets = torch.tensor([0, 1, 2, 3])
    loss = training_loss(logits, targets, label_smoothing=0.1)
    alone = {
        name: nn.functional.cross_entropy(output, targets, label_smoothing=0.1)
        for name, output in logits.items()
    }
    expected = alone["main"] + 0.1 * (alone["stage1_aux"] + alone["stage2_aux"])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        training_loss(logits["main"], targets, label_smoothing=0.1), alone["main"]
    )
