"""Latencies of a network, as trained and fused, printed as ratios first."""

from __future__ import annotations

from collections.abc import Sequence

import click
import torch

import reparam
from reparam.deployment import Comparison, compare, describe_machine
from repvgg.training import build_network, image_size


def run_benchmark(
    name: str,
    batch_sizes: Sequence[int],
    *,
    size: int | None = None,
    rounds: int,
    channels_last: bool = False,
) -> list[Comparison]:
    """Times both forms of a network, taking turns, and prints the findings.

    Args:
        name: Name of the network.
        batch_sizes: Numbers of images at a time.
        size: Height and width of the images, in pixels; as is usual for the network if `None`.
        rounds: How often each form runs.
        channels_last: Whether channels lie next to each other in memory.

    Raises:
        ReparamError: If the name is unknown.
    """
    network = build_network(name, num_classes=1000, in_chans=3).eval()
    network.remove_auxiliary_heads()
    fused = reparam.fuse(network)
    side = size or image_size(name)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for model in (network, fused):
        model.to(memory_format=layout)  # type: ignore[call-overload]
    click.echo(f"{name}, images of {side} by {side}, on {describe_machine()}")
    click.echo(f"medians (quartiles) of {rounds} alternating rounds")
    comparisons = []
    for batch in batch_sizes:
        images = torch.rand(batch, 3, side, side).to(memory_format=layout)
        comparison = compare(network, fused, images, rounds=rounds)
        click.echo(
            f"batch of {batch}: fused {comparison.speedup:.2f} times as fast; "
            f"{comparison.original} as trained, {comparison.fused} fused"
        )
        comparisons.append(comparison)
    return comparisons
