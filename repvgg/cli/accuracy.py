"""The accuracy of weights in a file, in both forms of the network."""

from __future__ import annotations

from pathlib import Path

import click

import reparam
from reparam import ReparamError
from repvgg.data import held_out_samples
from repvgg.training import Evaluation, Processes, evaluate, network_of
from repvgg.weights import is_fused


def evaluate_weights(
    name: str,
    weights: Path,
    data: str,
    *,
    size: int,
    batch_size: int,
    workers: int,
    processes: Processes,
) -> Evaluation:
    """Evaluates a network and its fused form on the same held-out images, and prints the findings.

    Args:
        name: Name of the network.
        weights: Its weights; fused ones are evaluated alone.
        data: `digits`, or a folder of images.
        size: Height and width of images from a folder.
        batch_size: Images in one batch.
        workers: Processes that read images ahead, for each process that computes.
        processes: The processes that share the work.

    Raises:
        ReparamError: If the weights, the network and the images do not fit together.
    """
    network = network_of(name, weights)
    samples = held_out_samples(data, size)
    classes = network.num_classes
    if classes != len(samples.classes) or network.in_chans != samples.channels:
        raise ReparamError(
            f"{weights} tells {classes} classes of images of {network.in_chans} channels apart, "
            f"and {data} has {len(samples.classes)} of {samples.channels}"
        )
    forms = {"fused": network}
    if not is_fused(network.state_dict()):
        forms = {"as trained": network, "fused": reparam.fuse(network)}
    evaluation = evaluate(
        [model.to(processes.device) for model in forms.values()],
        samples,
        batch_size=batch_size,
        processes=processes,
        workers=workers,
    )
    if processes.first:
        for form, accuracy in zip(forms, evaluation.accuracies, strict=True):
            click.echo(f"{form}: {accuracy}")
        if len(forms) > 1:
            same, images = evaluation.agreements[-1], len(samples)
            click.echo(f"the same prediction for {same:,} of {images:,} ({same / images:.2%})")
    return evaluation
