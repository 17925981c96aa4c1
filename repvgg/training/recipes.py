"""Training recipes as data: those of the RepVGG paper, and a short one for the digits.

The numbers are those of section 4.1 of
[RepVGG: Making VGG-style ConvNets Great Again](https://arxiv.org/abs/2101.03697), and for
RepVGGplus those that its authors published with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

from reparam import ReparamError

PRECISIONS = ("float32", "bfloat16", "float16")


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Recipe:
    """All that decides what training makes of a network, besides the images and the seed.

    The defaults are the paper's plain recipe. `help` in the metadata of each field says what it
    does; the command line shows it.

    Raises:
        ReparamError: If a value is out of its range.

    Examples:
        >>> Recipe(epochs=90).learning_rate
        0.1
    """

    epochs: int = _setting(120, "How often training passes over all images.")
    batch_size: int = _setting(256, "Images in one step, over all processes together.")
    learning_rate: float = _setting(0.1, "Its largest value; from there it follows a cosine to 0.")
    warmup_epochs: int = _setting(0, "Epochs over which the learning rate first rises from 0.")
    momentum: float = _setting(0.9, "Momentum of stochastic gradient descent.")
    nesterov: bool = _setting(False, "Whether the momentum is Nesterov's.")
    weight_decay: float = _setting(1e-4, "Not applied to biases and batch norms of convolutions.")
    custom_l2: bool = _setting(
        False, "Whether the weights of blocks decay as the kernel that they will be fused to."
    )
    label_smoothing: float = _setting(0.0, "Part of each label that is spread over all classes.")
    mixup: float = _setting(0.0, "Both parameters of mixup's beta distribution; 0 for no mixup.")
    rand_augment: int = _setting(0, "Magnitude of RandAugment on image folders; 0 for none.")
    average_decay: float = _setting(
        0.0, "Decay of the moving average of the weights that is evaluated; 0 for no average."
    )
    train_size: int = _setting(224, "Side of the images from a folder while training.")
    test_size: int = _setting(224, "Side of the images from a folder in evaluation.")
    precision: str = _setting("float32", "What convolutions compute in; weights stay float32.")
    channels_last: bool = _setting(
        False, "Whether channels lie next to each other in memory; GPUs only."
    )
    freeze_bn: bool = _setting(False, "Whether batch norms keep their running statistics.")
    sync_bn: bool = _setting(False, "Whether batch statistics span all processes; GPUs only.")
    grad_checkpointing: bool = _setting(
        False, "Whether activations are computed again in the backward pass, to save memory."
    )

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "train_size", "test_size"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        self._check("learning_rate", 0 < self.learning_rate < math.inf, "a positive number")
        for name in ("weight_decay", "mixup"):
            value = getattr(self, name)
            self._check(name, value >= 0 and math.isfinite(value), "0 or a positive number")
        for name in ("momentum", "label_smoothing", "average_decay"):
            self._check(name, 0 <= getattr(self, name) < 1, "from 0 to below 1")
        self._check("rand_augment", 0 <= self.rand_augment <= 30, "from 0 to 30")
        self._check(
            "warmup_epochs",
            0 <= self.warmup_epochs < self.epochs,
            f"from 0 to fewer than the {self.epochs} epochs",
        )
        self._check("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        if self.nesterov and self.momentum == 0:
            raise ReparamError("`nesterov` needs a momentum above 0")
        if self.freeze_bn and self.sync_bn:
            raise ReparamError("`freeze_bn` leaves no batch statistics for `sync_bn`; choose one")

    def changed(self, **values: Any) -> Recipe:
        """Returns the recipe with other values; fewer epochs leave a shorter warm-up.

        Args:
            values: The values by their names.

        Raises:
            ReparamError: If a value is out of its range.

        Examples:
            >>> Recipe(epochs=100, warmup_epochs=5).changed(epochs=3).warmup_epochs
            2
        """
        warmup = min(self.warmup_epochs, values.get("epochs", self.epochs) - 1)
        return replace(self, **{"warmup_epochs": warmup, **values})

    def steps_in_epoch(self, samples: int) -> int:
        """Counts the whole batches in one pass; what remains is left out, different in each epoch.

        Args:
            samples: How many samples there are to train on.

        Raises:
            ReparamError: If there is not even one.
        """
        if samples < self.batch_size:
            raise ReparamError(
                f"there are {samples} images to train on, fewer than the {self.batch_size} of one "
                "batch; choose a smaller batch size"
            )
        return samples // self.batch_size

    def total_steps(self, samples: int) -> int:
        """Counts the steps of the whole training.

        Args:
            samples: How many samples there are to train on.

        Raises:
            ReparamError: If they do not make up one batch.
        """
        return self.epochs * self.steps_in_epoch(samples)

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ReparamError(f"`{name}` must be {expected}, got {getattr(self, name)!r}")

    def __str__(self) -> str:
        return ", ".join(f"{value.name} {getattr(self, value.name)}" for value in fields(self))


PLAIN = Recipe()
"""For A0 to B2: random crops and flips only."""

STRONG = Recipe(epochs=200, label_smoothing=0.1, mixup=0.2, rand_augment=9)
"""For the larger networks."""

PLUS = replace(
    STRONG, epochs=300, warmup_epochs=5, weight_decay=4e-5, train_size=256, test_size=320
)
"""For RepVGGplus."""

DIGITS = Recipe(
    epochs=30,
    batch_size=64,
    learning_rate=0.2,
    warmup_epochs=5,
    nesterov=True,
    weight_decay=5e-4,
    label_smoothing=0.1,
)
"""For the digits, whatever the network: half a minute on one core."""

_STRONG_FAMILIES = ("repvgg_b2g4", "repvgg_b3", "repvgg_d2")


def recipe_for(model: str, *, digits: bool = False) -> Recipe:
    """Chooses the recipe with which a network is trained if nobody says otherwise.

    Args:
        model: Name of the network.
        digits: Whether it is trained on the digits.

    Examples:
        >>> recipe_for("repvgg_a0").epochs, recipe_for("repvgg_b3g4").epochs
        (120, 200)
    """
    if digits:
        return DIGITS
    if model.startswith("repvggplus"):
        return PLUS
    return STRONG if model.startswith(_STRONG_FAMILIES) else PLAIN
