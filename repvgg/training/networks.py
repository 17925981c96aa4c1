"""The networks that the command line builds: the published ones, and a small one."""

from __future__ import annotations

from pathlib import Path

from reparam import ReparamError
from reparam.deployment import read_state_dict
from repvgg.data import seeded
from repvgg.models import RepVGG, RepVGGConfig, find_variant
from repvgg.weights import convert_state_dict, is_fused, load_fresh

SMALL = "small"

SMALL_REPVGG = RepVGGConfig(
    blocks=(2, 2, 2, 1), channels=(16, 16, 32, 64, 128), strides=(1, 1, 2, 2, 1)
)
"""Eight blocks, for images of few pixels."""


def build_network(name: str, *, num_classes: int, in_chans: int, seed: int = 0) -> RepVGG:
    """Builds a network with fresh weights, the same for the same seed.

    Args:
        name: `small`, or one of `repvgg.list_models()`.
        num_classes: Number of classes.
        in_chans: Number of channels of the images.
        seed: Decides the weights.

    Raises:
        ReparamError: If the name is unknown or a number is not a positive integer.
    """
    config = SMALL_REPVGG if name == SMALL else find_variant(name)
    with seeded(seed, "weights"):
        return RepVGG(config, num_classes=num_classes, in_chans=in_chans)


def small_repvgg(seed: int) -> RepVGG:
    """Builds the network of the digits; the same weights for the same seed."""
    return build_network(SMALL, num_classes=10, in_chans=1, seed=seed)


def network_of(name: str, weights: Path) -> RepVGG:
    """Builds a network with the weights of a file, and with as many classes and input channels.

    Args:
        name: `small`, or one of `repvgg.list_models()`.
        weights: The file.

    Returns:
        The network in evaluation mode; a fused one if the weights are fused.

    Raises:
        ReparamError: If the name is unknown, the file cannot be read, or its weights are others.
    """
    state = read_state_dict(weights)
    # Under the authors' names the first and the last layer are found whatever the layout.
    fused = is_fused(state)
    named = convert_state_dict(state, to="official_fused" if fused else "official")
    first = named.get(f"stage0.{'rbr_reparam' if fused else 'rbr_dense.conv'}.weight")
    last = named.get("linear.weight")
    if first is None or last is None:
        raise ReparamError(f"{weights} has no weights of a RepVGG's first or last layer")
    network = build_network(name, num_classes=last.shape[0], in_chans=first.shape[1])
    return load_fresh(network, state, weights)


def image_size(name: str) -> int:
    """The height and width of the images that a network is usually given."""
    return 8 if name == SMALL else 224
