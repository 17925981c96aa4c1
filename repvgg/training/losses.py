"""The loss that is minimised."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

AUXILIARY_WEIGHT = 0.1


def training_loss(
    outputs: Tensor | Mapping[str, Tensor], targets: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    r"""Computes the cross entropy, for auxiliary classifiers too where there are some.

    A network that returns a mapping while it is trained, as RepVGGplus does, has the loss
    main + 0.1 · Σ auxiliary.

    Args:
        outputs: Logits, or a mapping with those of the classifier under `main`.
        targets: Classes, or probabilities of classes.
        label_smoothing: The part of each label that is spread over all classes.

    Shape:
        - outputs: :math:`(N, C)`, each
        - targets: :math:`(N)` or :math:`(N, C)`
        - Output: scalar
    """
    if isinstance(outputs, Tensor):
        return functional.cross_entropy(outputs, targets, label_smoothing=label_smoothing)
    losses = {
        name: functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)
        for name, logits in outputs.items()
    }
    main = losses.pop("main")
    for loss in losses.values():
        main = main + AUXILIARY_WEIGHT * loss
    return main
