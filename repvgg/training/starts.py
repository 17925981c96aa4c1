"""The network that a run begins with: fresh, of weights as trained, or of fused ones, expanded."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from torch import Tensor

import reparam
from reparam import ReparamError
from reparam.deployment import read_state_dict
from repvgg.data import Samples, load_batches, seeded
from repvgg.models import RepVGG
from repvgg.training.networks import build_network, network_of
from repvgg.training.processes import Processes
from repvgg.training.recipes import Recipe
from repvgg.training.sampling import TrainingBatches
from repvgg.weights import Layout, find_layout, is_fused

BLOCKS = tuple(
    name
    for name, function in vars(reparam.blocks).items()
    if inspect.isfunction(function)
    and function.__module__ == reparam.blocks.__name__
    and not name.startswith("_")
)
"""The names of the blocks that fused weights can be expanded to."""

_CALIBRATING = 4
"""How many batches the norms of new branches have their first statistics from."""

_CONVOLUTIONS = "*fused_conv"
"""The paths of the convolutions that blocks are fused to."""


@dataclass(frozen=True)
class Run:
    """What is trained on what, and how: whatever decides the weights that come out.

    Attributes:
        model: Name of the network.
        data: `digits`, or a folder of images.
        recipe: How it is trained.
        seed: Decides the first weights, the order of samples and their augmentation.
        weights: A file with weights to start from, if not from fresh ones.
        expand: The block, one of `BLOCKS`, whose branches the weights are expanded to, which are
            fused; `None` if they are not.
        expand_norms: Whether a batch norm ends each of these branches.
    """

    model: str
    data: str
    recipe: Recipe
    seed: int = 0
    weights: Path | None = None
    expand: str | None = None
    expand_norms: bool = True


def first_network(run: Run, train: Samples) -> RepVGG:
    """Builds the network to begin with; weights of another task get a fresh classifier.

    Args:
        run: What is trained.
        train: The samples to train on.

    Raises:
        ReparamError: If the weights cannot be read, do not fit, or have another form than needed.
    """
    classes = len(train.classes)
    if run.weights is None:
        if run.expand is not None:
            raise ReparamError("expanding starts from fused weights: give their file by --weights")
        return build_network(run.model, num_classes=classes, in_chans=train.channels, seed=run.seed)
    model = network_of(run.model, run.weights)
    fused = is_fused(model.state_dict())
    if fused and run.expand is None:
        raise ReparamError(
            f"{run.weights} is fused, and training needs the branches; "
            "start from weights as trained, or give them new ones by --expand"
        )
    if not fused and run.expand is not None:
        raise ReparamError(f"{run.weights} has its branches still: train them without --expand")
    if model.in_chans != train.channels:
        raise ReparamError(
            f"{run.weights} is for images of {model.in_chans} channels, "
            f"and {run.data} has images of {train.channels}"
        )
    if model.num_classes != classes:
        with seeded(run.seed, "classifier"):
            model.reset_classifier(classes)
    return model if run.expand is None else _expanded(model, run, train, run.expand)


def saved_layout(run: Run) -> Layout | None:
    """The layout of the weights that a run writes: as trained, or as what it expanded had."""
    if run.expand is None or run.weights is None:
        return None
    return find_layout(read_state_dict(run.weights))


def _expanded(model: RepVGG, run: Run, train: Samples, block: str) -> RepVGG:
    if block not in BLOCKS:
        raise ReparamError(f"unknown block {block!r}; known: {', '.join(BLOCKS)}")
    branches = getattr(reparam.blocks, block)()
    with seeded(run.seed, "branches"):
        if not run.expand_norms:
            return reparam.expand(model, branches, where=_CONVOLUTIONS)
        images = _calibrating(run, train)
        return reparam.expand(model, branches, where=_CONVOLUTIONS, norm="each", calibrate=images)


def _calibrating(run: Run, train: Samples) -> Iterator[Tensor]:
    """The images of the first steps, whole batches in every process."""
    batches = TrainingBatches(
        len(train), run.recipe, seed=run.seed, first_step=0, processes=Processes()
    )
    for images, _ in islice(load_batches(train, batches, workers=0), _CALIBRATING):
        yield images
